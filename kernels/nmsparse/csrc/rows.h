// acc[t][c] += sum over rows r of coef[t][r] * row[r][c]: the inner loop of every
// product over K-major weights, whatever chose the rows.
//
// Rows are walked in groups of kGroup. A group adds to the accumulators once, so they (a
// slab of columns, in L1 or L2) cost little, and long pieces of kGroup rows stream at a
// time. The hardware prefetcher cannot guess gathered rows: each group asks for the next
// one's while it works, into L2, because a group's pieces are larger than L1.
#pragma once

#include "simd.h"

namespace nms {

constexpr int kGroup = 16;
// Columns of one step: one cache line of 16-bit weights, half of one of floats.
constexpr int kStep = 32;

// A coefficient as the inner loop wants it: bf16 pairs feed the dot-product instruction.
#if defined(__AVX512BF16__)
template <class W>
struct CoefOf {
  typedef float type;
};
template <>
struct CoefOf<bf16> {
  typedef bf16 type;
};
#else
template <class W>
struct CoefOf {
  typedef float type;
};
#endif
template <class W>
using Coef = typename CoefOf<W>::type;

inline float coefficient(float x, float*) { return x; }
inline float coefficient(bf16 x, float*) { return to_float(x); }
inline float coefficient(f16 x, float*) { return to_float(x); }
inline bf16 coefficient(bf16 x, bf16*) { return x; }

template <class W>
inline void prefetch_rows(const W* const* next, int64_t c) {
#pragma GCC unroll 16
  for (int r = 0; r < kGroup; ++r) {
    __builtin_prefetch(next[r] + c, 0, 2);
    if (kStep * sizeof(W) > 64) __builtin_prefetch(next[r] + c + kStep / 2, 0, 2);
  }
}

// coefs: [tokens][kGroup]. acc: token t at acc + t * ld, 64-byte aligned. columns is a
// multiple of kStep. next: rows of the next group, to prefetch.
template <class W>
inline void add_group(const W* const* rows, const W* const* next, const float* coefs,
                      int tokens, float* acc, int64_t ld, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kStep) {
    prefetch_rows(next, c);
    for (int t = 0; t < tokens; ++t) {
      const float* k = coefs + t * kGroup;
      for (int i = 0; i < kStep; i += 2 * kLanes) {
        float* a = acc + t * ld + c + i;
        F32 x = load(a), y = load(a + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kGroup; ++r) {
          x += load(rows[r] + c + i) * k[r];
          y += load(rows[r] + c + i + kLanes) * k[r];
        }
        store(a, x);
        store(a + kLanes, y);
      }
    }
  }
}

#if defined(__AVX512BF16__)
// Two rows are interleaved, so that one instruction multiplies and adds both. That
// leaves columns in another order inside each step; `settle` puts them back.
inline void add_group(const bf16* const* rows, const bf16* const* next,
                      const bf16* coefs, int tokens, float* acc, int64_t ld,
                      int64_t columns) {
  constexpr int kPairs = kGroup / 2;
  for (int64_t c = 0; c < columns; c += kStep) {
    __m512i low[kPairs], high[kPairs];
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      const __m512i a = _mm512_loadu_si512(rows[2 * p] + c);
      const __m512i b = _mm512_loadu_si512(rows[2 * p + 1] + c);
      low[p] = _mm512_unpacklo_epi16(a, b);
      high[p] = _mm512_unpackhi_epi16(a, b);
    }
    prefetch_rows(next, c);
    for (int t = 0; t < tokens; ++t) {
      const bf16* k = coefs + t * kGroup;
      float* a = acc + t * ld + c;
      __m512 x = _mm512_load_ps(a), y = _mm512_load_ps(a + 16);
#pragma GCC unroll 8
      for (int p = 0; p < kPairs; ++p) {
        uint32_t pair;
        std::memcpy(&pair, k + 2 * p, 4);
        const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
        x = _mm512_dpbf16_ps(x, (__m512bh)low[p], both);
        y = _mm512_dpbf16_ps(y, (__m512bh)high[p], both);
      }
      _mm512_store_ps(a, x);
      _mm512_store_ps(a + 16, y);
    }
  }
}
#endif

// Natural order of columns after `add_group` of W.
template <class W>
inline void settle(float*, int64_t) {}

#if defined(__AVX512BF16__)
template <>
inline void settle<bf16>(float* acc, int64_t columns) {
  const __m512i first =
      _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15,
                                           28, 29, 30, 31);
  for (int64_t c = 0; c < columns; c += kStep) {
    const __m512 x = _mm512_load_ps(acc + c), y = _mm512_load_ps(acc + c + 16);
    _mm512_store_ps(acc + c, _mm512_permutex2var_ps(x, first, y));
    _mm512_store_ps(acc + c + 16, _mm512_permutex2var_ps(x, second, y));
  }
}
#endif

}  // namespace nms
