// Vectors of floats, and loads that widen bfloat16 and float16 to them.
//
// GCC's vector extensions carry almost everything, so one source serves every ISA level
// and NEON: the same file is compiled once per level. Intrinsics appear only where the
// extensions cannot say what the hardware does (float16, expand, bfloat16 dot products).
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nms {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// GCC vectors of kLanes elements; `u` types may be read from any address.
typedef float F32 __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U32 __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef F32 F32u __attribute__((aligned(4)));
typedef U16 U16u __attribute__((aligned(2)));

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// fn(0) ... fn(N - 1) with constants, so that arrays they index stay in registers.
template <class F, int... I>
inline __attribute__((always_inline)) void unroll(std::integer_sequence<int, I...>,
                                                  const F& fn) {
  (fn(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
inline __attribute__((always_inline)) void unroll(const F& fn) {
  unroll(std::make_integer_sequence<int, N>{}, fn);
}

inline F32 splat(float x) { return F32{} + x; }

// kLanes consecutive elements as floats.
inline F32 load(const float* p) { return *reinterpret_cast<const F32u*>(p); }

inline F32 load(const bf16* p) {
  const U16 half = *reinterpret_cast<const U16u*>(p);
  return bit_cast<F32>(__builtin_convertvector(half, U32) << 16);
}

inline F32 load(const f16* p) {
#if defined(__AVX512F__)
  return (F32)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
  return (F32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  // Move exponent and mantissa into place and rebias by a multiplication, which also
  // normalises denormals; infinity and NaN get their exponent by hand.
  const U32 half = __builtin_convertvector(*reinterpret_cast<const U16u*>(p), U32);
  const F32 scaled = bit_cast<F32>((half & 0x7fff) << 13) * splat(0x1p112f);
  const U32 special = (U32)((half & 0x7c00) == 0x7c00) & 0x7f800000u;
  return bit_cast<F32>(bit_cast<U32>(scaled) | special | (half & 0x8000) << 16);
#endif
}

inline void store(float* p, F32 x) { *reinterpret_cast<F32u*>(p) = x; }

inline float sum(F32 x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// One element. Rounding to nearest, ties to even, as torch rounds; NaN stays NaN.
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_float(f16 x) {
  const uint32_t half = x.bits;
  const float scaled = bit_cast<float>((half & 0x7fff) << 13) * 0x1p112f;
  const uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | (half & 0x8000) << 16);
}

template <class T>
inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline f16 from_float<f16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  // 65520 and above round to infinity.
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  if (magnitude < 0x38800000) {  // result is denormal: let the adder align and round
    const float aligned = bit_cast<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (bit_cast<uint32_t>(aligned) - 0x3f000000))};
  }
  magnitude += 0xc8000fff + (magnitude >> 13 & 1);
  return {uint16_t(sign | magnitude >> 13)};
}

}  // namespace nms
