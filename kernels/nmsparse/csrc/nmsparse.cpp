// The one translation unit of the CPU kernels; compiled once per ISA level.
#include "nmsparse.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "dot.h"
#include "gather.h"
#include "sparsify.h"

namespace {

using nms::bf16;
using nms::f16;

// No exception may cross the C interface; only memory can run out.
template <class F>
int by_dtype(int dtype, const F& run) {
  try {
    switch (dtype) {
      case NMS_F32: run(float{}); return 0;
      case NMS_BF16: run(bf16{}); return 0;
      case NMS_F16: run(f16{}); return 0;
      default: return NMS_UNSUPPORTED;
    }
  } catch (const std::bad_alloc&) {
    return NMS_NO_MEMORY;
  }
}

}  // namespace

int nms_abi_version(void) { return NMS_ABI_VERSION; }

const char* nms_isa(void) {
#if defined(__AVX512BF16__) && defined(__AVX512VBMI2__)
  return "avx512bf16";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "portable";
#endif
}

int64_t nms_sizeof(int which) {
  const int64_t sizes[] = {sizeof(nms_sparsify_args), sizeof(nms_gather_args),
                           sizeof(nms_dot_args)};
  return which >= 0 && which < 3 ? sizes[which] : int64_t{NMS_UNSUPPORTED};
}

int nms_sparsify(const nms_sparsify_args* args) {
  const nms_sparsify_args& a = *args;
  if (a.tokens < 0 || a.channels <= 0 || a.group <= 0 || a.channels % a.group ||
      a.kept <= 0 || a.kept > a.group || !a.values != !a.indices)
    return NMS_UNSUPPORTED;
  return by_dtype(a.dtype, [&](auto w) { nms::sparsify<decltype(w)>(a); });
}

int nms_gather(const nms_gather_args* args) {
  const nms_gather_args& a = *args;
  if (a.tokens < 0 || a.outputs < 0 || a.channels < 0 || a.listed < 0 ||
      a.weight_stride < a.outputs ||
      (!a.indices && a.tokens && a.listed != a.channels) ||
      (a.token_shift && !a.row_sum))
    return NMS_UNSUPPORTED;
  return by_dtype(a.dtype, [&](auto w) { nms::gather<decltype(w)>(a); });
}

int nms_dot(const nms_dot_args* args) {
  const nms_dot_args& a = *args;
  if (a.tokens < 0 || a.outputs < 0 || a.channels < 0 || (a.bits && !a.offsets))
    return NMS_UNSUPPORTED;
  return by_dtype(a.dtype, [&](auto w) { nms::dot<decltype(w)>(a); });
}

float nms_scan(const float* data, int64_t n, int threads) {
  float total = 0;
  nms::parallel(threads, [&](int part, int parts) {
    const nms::Range mine = nms::split(n, 1024, part, parts);
    nms::F32 sums[4] = {};
    for (int64_t i = mine.begin; i + 4 * nms::kLanes <= mine.end; i += 4 * nms::kLanes)
      for (int j = 0; j < 4; ++j) {
        __builtin_prefetch(data + i + j * nms::kLanes + 1024, 0, 3);
        sums[j] += nms::load(data + i + j * nms::kLanes);
      }
    const float part_sum = nms::sum(sums[0] + sums[1] + sums[2] + sums[3]);
#pragma omp atomic
    total += part_sum;
  });
  return total;
}

int nms_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t{2} << 20, start = (uintptr_t)data;
  const uintptr_t from = (start + page - 1) / page * page;
  const uintptr_t to = (start + uintptr_t(bytes)) / page * page;
  return from < to ? madvise((void*)from, to - from, MADV_HUGEPAGE) : 0;
#else
  (void)data, (void)bytes;
  return 0;
#endif
}
