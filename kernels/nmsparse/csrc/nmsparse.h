// The C interface of the CPU kernels: plain pointers, no torch, no Python.
//
// Letters as everywhere in the project: T tokens, K input channels, O outputs. A weight
// is K-major ([K, O], row k holds the weights of channel k) or O-major ([O, K], as
// Hugging Face stores it). Strides count elements. Every function returns 0, or a
// negative number if an argument is outside what it supports; nothing is written then.
// kernels/nmsparse/native/abi.py mirrors these structures and checks their sizes.
#pragma once

#include <stdint.h>

#define NMS_ABI_VERSION 3
#define NMS_API extern "C" __attribute__((visibility("default")))

enum { NMS_F32 = 0, NMS_BF16 = 1, NMS_F16 = 2 };
enum { NMS_UNSUPPORTED = -1, NMS_NO_MEMORY = -2 };
// How several tokens with different rows are walked.
enum { NMS_UNION = 0, NMS_PER_TOKEN = 1 };

typedef struct {
  const void* x;         // [T, K]
  const float* factor;   // [K] or null: multiplies the score of a channel
  const float* channel_shift;  // [K] or null: subtracted before scoring
  const float* token_shift;    // [T] or null: the same, per token
  void* values;          // [T, K / group * kept] or null, kept channels, ascending
  int32_t* indices;      // the same shape, or null: their channels
  void* dense;           // [T, K] or null: dropped channels zero
  float* scale;          // [T] or null: sqrt(var(x - shift) / var(kept)), 1 if 0 / 0
  int64_t* nonzeros;     // [1] or null: incremented by the non-zero values kept
  int64_t tokens, channels, x_stride;
  int32_t dtype, kept, group, threads;
} nms_sparsify_args;

// out[t] = scale[t] * (1 + output_scale) * sum_i values[t, i] * weight[indices[t, i]]
//          + token_shift[t] * row_sum + constant + bias + addend[t]
typedef struct {
  const void* values;      // [T, n]
  const int32_t* indices;  // [T, n], ascending; null: n == K, every channel
  const void* weight;      // [K, O]
  void* out;               // [T, O]
  const void* bias;        // [O] or null, dtype of the weight
  const void* addend;      // [T, O] or null, dtype of the weight
  const float* scale;        // [T] or null
  const float* token_shift;  // [T] or null
  const float* row_sum;      // [O], needed with token_shift
  const float* output_scale;  // [O] or null
  const float* constant;      // [O] or null: a bias that is not rounded
  int64_t* rows_read;         // [1] or null: set to the rows of weight that were read
  int64_t tokens, listed, channels, outputs;
  int64_t values_stride, indices_stride;  // indices_stride 0: one list for all tokens
  int64_t weight_stride, out_stride;
  int32_t dtype, strategy, threads;
  int32_t padded;  // reading each row up to a multiple of 32 outputs is allowed
} nms_gather_args;

// out[t] = x[t] . weight^T + bias; the weight is dense or bitmask-packed, O-major.
typedef struct {
  const void* x;           // [T, K]
  const void* weight;      // [O, K] dense, or packed values with 64 readable after them
  const uint64_t* bits;    // [O, ceil(K / 64)] or null if dense
  const int64_t* offsets;  // [O + 1] first packed value of each row, null if dense
  void* out;               // [T, O]
  const void* bias;        // [O] or null, dtype of the weight
  int64_t tokens, channels, outputs;
  int64_t x_stride, weight_stride, out_stride;
  int32_t dtype, threads;
} nms_dot_args;

NMS_API int nms_abi_version(void);
NMS_API const char* nms_isa(void);
// Bytes of nms_sparsify_args, nms_gather_args, nms_dot_args (0, 1, 2).
NMS_API int64_t nms_sizeof(int which);
NMS_API int nms_sparsify(const nms_sparsify_args* args);
NMS_API int nms_gather(const nms_gather_args* args);
NMS_API int nms_dot(const nms_dot_args* args);
// Sum of n floats: the read bandwidth that benchmarks compare with.
NMS_API float nms_scan(const float* data, int64_t n, int threads);
// Ask the system to back whole 2 MiB pages of [data, data + bytes) by huge pages.
NMS_API int nms_huge_pages(void* data, int64_t bytes);
