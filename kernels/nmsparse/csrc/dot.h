// Products over O-major weights: dense, or bitmask-packed and expanded in registers.
//
// The weight is read once from end to end, which the hardware prefetcher likes, and each
// piece meets all tokens while it is in a register. A packed row is a run of bits (one a
// channel) and a run of values; 64 channels at a time, the values are expanded to their
// places with zeros between them.
#pragma once

#include "nmsparse.h"
#include "simd.h"
#include "threads.h"

namespace nms {

constexpr int kWord = 64;  // channels of one step: one word of bits
constexpr int kDotTokens = 8;

// What the tokens are staged as: bfloat16 for the dot-product instruction, else floats.
#if defined(__AVX512BF16__)
template <class W>
struct StageOf {
  typedef float type;
};
template <>
struct StageOf<bf16> {
  typedef bf16 type;
};
#else
template <class W>
struct StageOf {
  typedef float type;
};
#endif
template <class W>
using Stage = typename StageOf<W>::type;

constexpr int kAhead = 1024;          // bytes
constexpr int64_t kResident = 12 * 1024;  // bytes of x
inline void prefetch(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + kAhead, 0, 3);
}

// ---- 64 channels of a row, as vectors --------------------------------------------
// Piece<W>: vectors of 64 channels; multiply(piece, x, acc) adds their products.

template <class W>
struct Piece {
  static constexpr int kVectors = kWord / kLanes;
  F32 part[kVectors];

  void load_dense(const W* p) {
    unroll<kVectors>([&](auto i) { part[i] = load(p + i * kLanes); });
  }

  // Returns the values used. Reads up to 64 values from p.
  int load_packed(const W* p, uint64_t bits);

  struct Token {
    F32 part[kVectors];
    explicit Token(const float* x) {
      unroll<kVectors>([&](auto i) { part[i] = load(x + i * kLanes); });
    }
  };
  template <int kSums>
  void add(const Token& x, F32* acc) const {
    unroll<kVectors>([&](auto i) { acc[i % kSums] += part[i] * x.part[i]; });
  }
  typedef F32 Acc;
};

#if defined(__AVX512F__)
inline F32 expand(const float* p, uint16_t bits) {
  return (F32)_mm512_maskz_expand_ps(bits, _mm512_loadu_ps(p));
}
template <class W>
inline F32 expand(const W* p, uint16_t bits) {
  return (F32)_mm512_maskz_expand_ps(bits, (__m512)load(p));
}
template <class W>
inline int Piece<W>::load_packed(const W* p, uint64_t bits) {
  int used = 0;
  unroll<kVectors>([&](auto i) {
    const uint16_t here = uint16_t(bits >> (i * kLanes));
    part[i] = expand(p + used, here);
    used += __builtin_popcount(here);
  });
  return used;
}
#else
template <class W>
inline int Piece<W>::load_packed(const W* p, uint64_t bits) {
  alignas(64) W buffer[kWord] = {};
  int used = 0;
  for (uint64_t left = bits; left; left &= left - 1)
    buffer[__builtin_ctzll(left)] = p[used++];
  load_dense(buffer);
  return used;
}
#endif

#if defined(__AVX512BF16__)
template <>
struct Piece<bf16> {
  static constexpr int kVectors = 2;
  __m512i part[2];

  void load_dense(const bf16* p) {
    part[0] = _mm512_loadu_si512(p);
    part[1] = _mm512_loadu_si512(p + 32);
  }
  int load_packed(const bf16* p, uint64_t bits) {
    const uint32_t low = uint32_t(bits), high = uint32_t(bits >> 32);
    const int middle = __builtin_popcount(low);
    part[0] = _mm512_maskz_expand_epi16(low, _mm512_loadu_si512(p));
    part[1] = _mm512_maskz_expand_epi16(high, _mm512_loadu_si512(p + middle));
    return middle + __builtin_popcount(high);
  }
  struct Token {
    __m512i part[2];
    explicit Token(const bf16* x)
        : part{_mm512_loadu_si512(x), _mm512_loadu_si512(x + 32)} {}
  };
  template <int kSums>
  void add(const Token& x, __m512* acc) const {
    unroll<2>([&](auto i) {
      acc[i % kSums] = _mm512_dpbf16_ps(acc[i % kSums], (__m512bh)part[i],
                                        (__m512bh)x.part[i]);
    });
  }
  typedef __m512 Acc;
};
#endif

// R rows, `stride` apart, and T tokens at a time: a piece of x is loaded once for R rows.
template <class W, int T, int R>
void dot_rows(const nms_dot_args& a, const Stage<W>* x, int64_t ld, int64_t token,
              int64_t o, int64_t stride) {
  typedef typename Piece<W>::Acc Acc;
  const int64_t words = (a.channels + kWord - 1) / kWord;
  const int64_t whole = a.bits ? words : a.channels / kWord;
  // Independent sums hide the latency of one addition after another.
  constexpr int kSums = R * T <= 4 ? 2 : 1;
  Acc acc[R][T][kSums];
  unroll<R * T * kSums>([&](auto i) { (&acc[0][0][0])[i] = Acc{}; });
  const W* w[R];
  const uint64_t* bits[R];
  unroll<R>([&](auto r) {
    const int64_t row = o + r * stride;
    w[r] = static_cast<const W*>(a.weight) +
           (a.bits ? a.offsets[row] : row * a.weight_stride);
    bits[r] = a.bits ? a.bits + row * words : nullptr;
  });
  const int64_t ahead =
      std::min<int64_t>(R, a.outputs - 1 - o - (R - 1) * stride) * a.weight_stride;
  Piece<W> piece[R];
  const auto multiply = [&](int64_t i) __attribute__((always_inline)) {
    unroll<T>([&](auto t) {
      const typename Piece<W>::Token token_piece(x + t * ld + i * kWord);
      unroll<R>([&](auto r) { piece[r].template add<kSums>(token_piece, acc[r][t]); });
    });
  };
  if (a.bits) {
    for (int64_t i = 0; i < whole; ++i) {
      unroll<R>([&](auto r) {
        prefetch(w[r]);
        w[r] += piece[r].load_packed(w[r], bits[r][i]);
      });
      multiply(i);
    }
  } else {
    for (int64_t i = 0; i < whole; ++i) {
      unroll<R>([&](auto r) {
        for (size_t line = 0; line < kWord * sizeof(W); line += 64)
          if (R == 1)
            prefetch(reinterpret_cast<const char*>(w[r]) + line);
          else  // the same place in the next R rows, into L2
            __builtin_prefetch(reinterpret_cast<const char*>(w[r] + ahead) + line, 0, 2);
        piece[r].load_dense(w[r]);
        w[r] += kWord;
      });
      multiply(i);
    }
  }
  if (whole < words) {  // the last row must not be read past its end
    unroll<R>([&](auto r) {
      alignas(64) W tail[kWord] = {};
      std::memcpy(tail, w[r], (a.channels % kWord) * sizeof(W));
      piece[r].load_dense(tail);
    });
    multiply(whole);
  }
  const W* bias = static_cast<const W*>(a.bias);
  unroll<R>([&](auto r) {
    const int64_t row = o + r * stride;
    unroll<T>([&](auto t) {
      Acc total = acc[r][t][0];
      if constexpr (kSums == 2) total += acc[r][t][1];
      float y = sum((F32)total);
      if (bias) y += to_float(bias[row]);
      static_cast<W*>(a.out)[(token + t) * a.out_stride + row] = from_float<W>(y);
    });
  });
}

template <class W, int R>
void dot_tokens(const nms_dot_args& a, const Stage<W>* x, int64_t ld, int64_t token,
                int tokens, int64_t o, int64_t stride) {
  switch (tokens) {
    case 1: return dot_rows<W, 1, R>(a, x, ld, token, o, stride);
    case 2: return dot_rows<W, 2, R>(a, x, ld, token, o, stride);
    case 3: return dot_rows<W, 3, R>(a, x, ld, token, o, stride);
    case 4: return dot_rows<W, 4, R>(a, x, ld, token, o, stride);
    default: break;
  }
  if constexpr (R <= 2) {  // more rows and tokens than this do not fit the registers
    switch (tokens) {
      case 5: return dot_rows<W, 5, R>(a, x, ld, token, o, stride);
      case 6: return dot_rows<W, 6, R>(a, x, ld, token, o, stride);
      case 7: return dot_rows<W, 7, R>(a, x, ld, token, o, stride);
      default: return dot_rows<W, 8, R>(a, x, ld, token, o, stride);
    }
  }
}

// Rows [begin, end). Measured: packed rows go fastest as R runs side by side, each read
// from end to end, and dense rows as R neighbours.
template <class W, int R>
void dot_range(const nms_dot_args& a, const Stage<W>* x, int64_t ld, Range rows) {
  const int64_t blocks = (rows.end - rows.begin) / R;
  const int64_t stride = a.bits ? blocks : 1, step = a.bits ? 1 : R;
  const auto all_tokens = [&](auto r, int64_t o) {
    for (int64_t t = 0; t < a.tokens; t += kDotTokens)
      dot_tokens<W, decltype(r)::value>(
          a, x + t * ld, ld, t, int(std::min<int64_t>(kDotTokens, a.tokens - t)), o,
          stride);
  };
  for (int64_t i = 0; i < blocks; ++i)
    all_tokens(std::integral_constant<int, R>{}, rows.begin + i * step);
  for (int64_t o = rows.begin + blocks * R; o < rows.end; ++o)
    all_tokens(std::integral_constant<int, 1>{}, o);
}

inline void stage(float x, float* to) { *to = x; }
inline void stage(bf16 x, float* to) { *to = to_float(x); }
inline void stage(f16 x, float* to) { *to = to_float(x); }
inline void stage(bf16 x, bf16* to) { *to = x; }

template <class W>
void dot(const nms_dot_args& a) {
  static thread_local Scratch scratch;
  const int64_t padded = (a.channels + kWord - 1) / kWord * kWord;
  // One more word, so that tokens do not compete for the same cache sets.
  const int64_t ld = padded + kWord;
  Stage<W>* x = scratch.take<Stage<W>>(a.tokens * ld + 1);
  for (int64_t t = 0; t < a.tokens; ++t) {
    const W* from = static_cast<const W*>(a.x) + t * a.x_stride;
    for (int64_t k = 0; k < a.channels; ++k) stage(from[k], x + t * ld + k);
    std::memset(x + t * ld + a.channels, 0, (padded - a.channels) * sizeof(*x));
  }
  parallel(a.threads, [&](int part, int parts) {
    const Range mine = split(a.outputs, 16, part, parts);
    // One token: a row at a time streams best, as long as x stays in the first-level
    // cache beside it. Beyond, x is read again for every row, so rows share it.
    if (a.tokens == 1 && padded * int64_t(sizeof(*x)) <= kResident)
      dot_range<W, 1>(a, x, ld, mine);
    else if (a.tokens <= 4 && Piece<W>::kVectors <= 2)
      dot_range<W, 4>(a, x, ld, mine);
    else
      dot_range<W, 2>(a, x, ld, mine);
  });
}

}  // namespace nms
