// Keep N of every M channels of each token: score, select, write what stays.
#pragma once

#include <cmath>

#include "nmsparse.h"
#include "select.h"
#include "threads.h"

namespace nms {

template <class W>
struct Row {
  const W* x;
  const float* factor;
  const float* channel_shift;
  float token_shift;
  bool shifted;

  float value(int64_t k) const {
    float x_k = to_float(x[k]);
    if (channel_shift) x_k -= channel_shift[k];
    if (shifted) x_k -= token_shift;
    return x_k;
  }
  bool as_is() const { return !channel_shift && !shifted; }
};

// sqrt(var(all) / var(kept, zeros included)), over all K channels.
template <class W>
float variance_scale(const Row<W>& row, int64_t channels, const Bits& keep) {
  double sum = 0, sum_kept = 0, square = 0, square_kept = 0;
  // Relative to one of the values: a constant token then has exactly no variance.
  const double pivot = row.value(0);
  for (int64_t k = 0; k < channels; ++k) {
    const double v = row.value(k) - pivot, v_kept = keep(k) ? v : -pivot;
    sum += v, sum_kept += v_kept;
    square += v * v, square_kept += v_kept * v_kept;
  }
  const double n = double(channels);
  const double all = square - sum * sum / n, some = square_kept - sum_kept * sum_kept / n;
  return some > 0 && all > 0 ? float(std::sqrt(all / some)) : 1.f;
}

// Writers of what stays. Each returns how many of the kept values are not zero.

template <class W>
int64_t write_dense(const Row<W>& row, int64_t channels, const Bits& keep, W* dense) {
  int64_t nonzeros = 0;
  std::memset(dense, 0, channels * sizeof(W));
  keep.for_each(channels, [&](int64_t k) {
    dense[k] = row.as_is() ? row.x[k] : from_float<W>(row.value(k));
    nonzeros += key_of(dense[k]) != 0;
  });
  return nonzeros;
}

template <class W>
int64_t write_compact(const Row<W>& row, int64_t channels, const Bits& keep, W* values,
                      int32_t* indices) {
  int64_t nonzeros = 0;
  int64_t done = 0;
#if defined(__AVX512VBMI2__)
  if (sizeof(W) == 2 && row.as_is()) {
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                                            14, 15);
    for (; done + 32 <= channels; done += 32) {
      const uint32_t bits = uint32_t(keep.word(done / 64) >> (done % 64));
      const int low = __builtin_popcount(bits & 0xffff), all = __builtin_popcount(bits);
      const __m512i x = _mm512_loadu_si512(row.x + done);
      nonzeros += __builtin_popcount(_mm512_mask_test_epi16_mask(bits, x, magnitude));
      // Masked stores: nothing is written behind the last kept channel.
      _mm512_mask_storeu_epi16(values, uint32_t((uint64_t{1} << all) - 1),
                               _mm512_maskz_compress_epi16(bits, x));
      const __m512i k = _mm512_add_epi32(first, _mm512_set1_epi32(int(done)));
      const __m512i next = _mm512_add_epi32(k, _mm512_set1_epi32(16));
      _mm512_mask_storeu_epi32(indices, __mmask16((1u << low) - 1),
                               _mm512_maskz_compress_epi32(__mmask16(bits), k));
      _mm512_mask_storeu_epi32(indices + low, __mmask16((1u << (all - low)) - 1),
                               _mm512_maskz_compress_epi32(__mmask16(bits >> 16), next));
      values += all;
      indices += all;
    }
  }
#endif
  for (int64_t w = done / 64; w * 64 < channels; ++w) {
    uint64_t left = keep.word(w);
    if (w == done / 64) left &= ~uint64_t{0} << (done % 64);
    for (; left; left &= left - 1) {
      const int64_t k = w * 64 + __builtin_ctzll(left);
      *values = row.as_is() ? row.x[k] : from_float<W>(row.value(k));
      nonzeros += key_of(*values++) != 0;
      *indices++ = int32_t(k);
    }
  }
  return nonzeros;
}

template <class W>
int64_t sparsify_token(const nms_sparsify_args& a, int64_t t) {
  const Row<W> row = {static_cast<const W*>(a.x) + t * a.x_stride, a.factor,
                      a.channel_shift, a.token_shift ? a.token_shift[t] : 0.f,
                      a.token_shift != nullptr};
  static thread_local Scratch s_words, s_keys;
  Bits keep(s_words.take<uint64_t>(Bits::words_for(a.channels)), a.channels);
  // select reads whole vectors of groups.
  const int64_t room = a.channels + 64 * 32;
  if (row.as_is() && !row.factor) {
    typedef decltype(key_of(W{})) Key;
    Key* keys = s_keys.take<Key>(room);
    for (int64_t k = 0; k < a.channels; ++k) keys[k] = key_of(row.x[k]);
    select<Key>(keys, a.channels, a.group, a.kept, keep);
  } else {
    int32_t* keys = s_keys.take<int32_t>(room);
    for (int64_t k = 0; k < a.channels; ++k) {
      const float score = std::fabs(row.value(k));
      keys[k] = key_of(row.factor ? score * row.factor[k] : score);
    }
    select<int32_t>(keys, a.channels, a.group, a.kept, keep);
  }
  const int64_t kept = a.channels / a.group * a.kept;
  int64_t nonzeros = 0;
  if (a.values)
    nonzeros = write_compact(row, a.channels, keep,
                             static_cast<W*>(a.values) + t * kept, a.indices + t * kept);
  if (a.dense)
    nonzeros = write_dense(row, a.channels, keep,
                           static_cast<W*>(a.dense) + t * a.channels);
  if (a.scale) a.scale[t] = variance_scale(row, a.channels, keep);
  return nonzeros;
}

template <class W>
void sparsify(const nms_sparsify_args& a) {
  int64_t nonzeros = 0;
  // A token takes microseconds: waking threads for fewer than two each costs more.
  const int threads = int(std::min<int64_t>(a.threads, std::max<int64_t>(a.tokens / 2, 1)));
  parallel(threads, [&](int part, int parts) {
    int64_t mine = 0;
    const Range tokens = split(a.tokens, 1, part, parts);
    for (int64_t t = tokens.begin; t < tokens.end; ++t) mine += sparsify_token<W>(a, t);
    __atomic_fetch_add(&nonzeros, mine, __ATOMIC_RELAXED);
  });
  if (a.nonzeros) *a.nonzeros += nonzeros;
}

}  // namespace nms
