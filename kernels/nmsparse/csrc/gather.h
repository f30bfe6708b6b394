// `linear` on compact activations: only the rows of kept channels are read.
#pragma once

#include "nmsparse.h"
#include "rows.h"
#include "threads.h"

namespace nms {

// Most tokens that share one walk over the rows: beyond it a dense GEMM wins anyway.
constexpr int kTokens = 16;
// Columns a thread accumulates at a time; the accumulators of all tokens share L2 with two
// groups of rows, so many tokens get half.
constexpr int64_t kSlab = 8192;

// The rows of one walk: pointers, padded to whole groups with a row of zeros, and each
// token's coefficient for each row, zero where it dropped the channel.
template <class W>
struct Walk {
  const W** rows;
  Coef<W>* coefs;  // [groups][tokens][kGroup]
  int64_t groups;
  int tokens;
  int64_t count;  // rows of the weight among them
};

template <class W>
inline const W* zero_row() {
  alignas(64) static const float zeros[kSlab + 2 * kStep] = {};
  return reinterpret_cast<const W*>(zeros);
}

// Channels of any of the tokens, ascending. position[k] becomes k's place among them.
inline int64_t unite(const nms_gather_args& a, int64_t token, int tokens,
                     int32_t* channels, int32_t* position) {
  if (!a.indices) {
    for (int64_t k = 0; k < a.channels; ++k) channels[k] = position[k] = int32_t(k);
    return a.channels;
  }
  std::fill_n(position, a.channels, -1);
  const int lists = a.indices_stride ? tokens : 1;
  for (int t = 0; t < lists; ++t) {
    const int32_t* list = a.indices + (token + t) * a.indices_stride;
    for (int64_t i = 0; i < a.listed; ++i) position[list[i]] = 0;
  }
  int64_t count = 0;
  for (int64_t k = 0; k < a.channels; ++k) {
    channels[count] = int32_t(k);
    const bool any = position[k] == 0;
    position[k] = any ? int32_t(count) : -1;
    count += any;
  }
  return count;
}

template <class W>
Walk<W> plan(const nms_gather_args& a, int64_t token, int tokens) {
  static thread_local Scratch s_channels, s_position, s_rows, s_coefs;
  int32_t* channels = s_channels.take<int32_t>(a.channels + 1);
  int32_t* position = s_position.take<int32_t>(a.channels + 1);
  int64_t count;
  const bool alone = a.indices && (tokens == 1 || !a.indices_stride);
  const int32_t* chosen = channels;
  if (alone) {
    chosen = a.indices + token * a.indices_stride;
    count = a.listed;
  } else {
    count = unite(a, token, tokens, channels, position);
  }
  const int64_t groups = (count + kGroup - 1) / kGroup;
  // One more group of pointers: what the last group prefetches.
  const W** rows = s_rows.take<const W*>((groups + 1) * kGroup);
  Coef<W>* coefs = s_coefs.take<Coef<W>>(groups * tokens * kGroup + 1);
  const W* weight = static_cast<const W*>(a.weight);
  for (int64_t i = 0; i < count; ++i) rows[i] = weight + chosen[i] * a.weight_stride;
  for (int64_t i = count; i < (groups + 1) * kGroup; ++i) rows[i] = zero_row<W>();
  std::memset(coefs, 0, groups * tokens * kGroup * sizeof(Coef<W>));
  const bool direct = alone || !a.indices;
  for (int t = 0; t < tokens; ++t) {
    const W* x = static_cast<const W*>(a.values) + (token + t) * a.values_stride;
    const int32_t* list =
        a.indices ? a.indices + (token + t) * a.indices_stride : nullptr;
    for (int64_t i = 0; i < a.listed; ++i) {
      const int64_t place = direct ? i : position[list[i]];
      coefs[(place / kGroup * tokens + t) * kGroup + place % kGroup] =
          coefficient(x[i], coefs);
    }
  }
  return {rows, coefs, groups, tokens, count};
}

// Sum of rows [begin, end) columns into acc[t * ld + c - begin].
template <class W>
void walk_columns(const Walk<W>& walk, int64_t begin, int64_t end, float* acc,
                  int64_t ld) {
  const int64_t whole = (end - begin) / kStep * kStep;
  for (int t = 0; t < walk.tokens; ++t) std::fill_n(acc + t * ld, end - begin, 0.f);
  const W* here[2 * kGroup];
  for (int64_t g = 0; g < walk.groups; ++g) {
    for (int r = 0; r < 2 * kGroup; ++r) {
      const W* row = walk.rows[g * kGroup + r];
      here[r] = row == zero_row<W>() ? row : row + begin;
    }
    const Coef<W>* coefs = walk.coefs + g * walk.tokens * kGroup;
    add_group(here, here + kGroup, coefs, walk.tokens, acc, ld, whole);
    // Columns past the last whole step, when the weight is not padded.
    for (int64_t c = whole; c < end - begin; ++c)
      for (int t = 0; t < walk.tokens; ++t)
        for (int r = 0; r < kGroup; ++r)
          acc[t * ld + c] += to_float(coefs[t * kGroup + r]) * to_float(here[r][c]);
  }
  for (int t = 0; t < walk.tokens; ++t) settle<W>(acc + t * ld, whole);
}

template <class W>
void finish(const nms_gather_args& a, int64_t token, int tokens, int64_t begin,
            int64_t end, const float* acc, int64_t ld) {
  const W* bias = static_cast<const W*>(a.bias);
  for (int t = 0; t < tokens; ++t) {
    const float scale = a.scale ? a.scale[token + t] : 1.f;
    const float shift = a.token_shift ? a.token_shift[token + t] : 0.f;
    W* out = static_cast<W*>(a.out) + (token + t) * a.out_stride;
    const W* addend =
        a.addend ? static_cast<const W*>(a.addend) + (token + t) * a.outputs : nullptr;
    for (int64_t c = begin; c < end; ++c) {
      float y = acc[t * ld + c - begin] * scale;
      if (a.output_scale) y *= 1.f + a.output_scale[c];
      if (a.token_shift) y += shift * a.row_sum[c];
      if (a.constant) y += a.constant[c];
      if (bias) y += to_float(bias[c]);
      if (addend) y += to_float(addend[c]);
      out[c] = from_float<W>(y);
    }
  }
}

template <class W>
void gather(const nms_gather_args& a) {
  const int most = a.strategy == NMS_PER_TOKEN ? 1 : kTokens;
  // Of a padded weight the last step may read over O; what it adds there is dropped.
  const int64_t width =
      a.padded ? (a.outputs + kStep - 1) / kStep * kStep : a.outputs;
  int64_t rows_read = 0;
  for (int64_t token = 0; token < a.tokens; token += most) {
    const int tokens = int(std::min<int64_t>(most, a.tokens - token));
    const Walk<W> walk = plan<W>(a, token, tokens);
    rows_read += walk.count;
    parallel(a.threads, [&](int part, int parts) {
      static thread_local Scratch scratch;
      const Range mine = split(width, 2 * kStep, part, parts);
      const int64_t slab = tokens <= 4 ? kSlab : kSlab / 2;
      // A little longer than a slab: tokens must not compete for the same cache sets.
      const int64_t ld = slab + 3 * kStep;
      float* acc = scratch.take<float>(tokens * ld);
      for (int64_t c = mine.begin; c < mine.end; c += slab) {
        const int64_t end = std::min(c + slab, mine.end);
        walk_columns(walk, c, end, acc, ld);
        finish<W>(a, token, tokens, c, std::min(end, a.outputs), acc, ld);
      }
    });
  }
  if (a.rows_read) *a.rows_read = rows_read;
}

}  // namespace nms
