// Which channels of one token stay: the best `kept` of every `group` by their keys.
//
// Keys are integers that order as the scores do. Ranks are counted, not sorted: element
// j of a group is beaten by i if i's key is larger, or equal and i comes first (the
// project's tie rule), and stays if fewer than `kept` beat it. Groups lie side by side in
// vectors, so that one instruction compares a pair of elements in many groups.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

namespace nms {

// Magnitudes order as their bits do; NaN is above everything. Never negative.
inline int16_t key_of(bf16 x) { return int16_t(x.bits & 0x7fff); }
inline int16_t key_of(f16 x) { return int16_t(x.bits & 0x7fff); }
inline int32_t key_of(float x) { return int32_t(bit_cast<uint32_t>(x) & 0x7fffffff); }

// One bit a channel, 64 to a word; zeroed up to two words beyond the last channel.
class Bits {
 public:
  Bits(uint64_t* words, int64_t channels) : words_(words) {
    std::memset(words, 0, words_for(channels) * sizeof(*words));
  }
  static int64_t words_for(int64_t channels) { return channels / 64 + 2; }

  uint64_t word(int64_t i) const { return words_[i]; }
  bool operator()(int64_t k) const { return words_[k / 64] >> (k % 64) & 1; }
  void set(int64_t k) { words_[k / 64] |= uint64_t{1} << (k % 64); }
  // The bits of a group at k; `count` divides 64 and k.
  void set_group(int64_t k, uint32_t bits) {
    words_[k / 64] |= uint64_t{bits} << (k % 64);
  }

  // fn(channel) for every kept channel, ascending. Words of an N:M pattern have equally
  // many, so the branch at the end of each is predictable.
  template <class F>
  void for_each(int64_t channels, const F& fn) const {
    for (int64_t w = 0; w * 64 < channels; ++w)
      for (uint64_t left = words_[w]; left; left &= left - 1)
        fn(w * 64 + __builtin_ctzll(left));
  }

 private:
  uint64_t* words_;
};

// fn(0) ... fn(N - 1): unrolled where 32 wide registers make it worth the compile time.
template <int N, class F>
inline void for_constants(const F& fn) {
#if defined(__AVX512BW__)
  unroll<N>(fn);
#else
  for (int i = 0; i < N; ++i) fn(i);
#endif
}

template <class Key>
struct SideBySide {
  static constexpr int kGroups = 64 / sizeof(Key);
  typedef Key V __attribute__((vector_size(64)));
  typedef V Vu __attribute__((aligned(alignof(Key))));
};

// v[m] = element m of every group, from groups one after another in memory.
template <class Key, int M>
inline void lay_side_by_side(const Key* keys, typename SideBySide<Key>::V* v) {
  typedef SideBySide<Key> S;
  constexpr int L = S::kGroups;
#if defined(__AVX512BW__)
  // Each stage takes even and odd places apart, which moves one bit of the place within
  // the group to the front; after log2(M) stages all of them are there.
  typename S::V even, odd;
  for (int i = 0; i < L; ++i) even[i] = Key(2 * i), odd[i] = Key(2 * i + 1);
  unroll<M>([&](auto i) { v[i] = *(const typename S::Vu*)(keys + i * L); });
  unroll<__builtin_ctz(M)>([&](auto) {
    typename S::V w[M];
    unroll<M / 2>([&](auto i) {
      w[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even);
      w[i + M / 2] = __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
    });
    unroll<M>([&](auto i) { v[i] = w[i]; });
  });
#else
  alignas(64) Key turned[M][L];
  for (int g = 0; g < L; ++g)
    for (int m = 0; m < M; ++m) turned[m][g] = keys[g * M + m];
  std::memcpy(v, turned, sizeof(turned));
#endif
}

// Groups of M, a power of two. keys are readable for 64 groups beyond the last channel.
template <class Key, int M>
void select_groups(const Key* keys, int64_t channels, int kept, Bits& keep) {
  typedef typename SideBySide<Key>::V V;
  constexpr int L = SideBySide<Key>::kGroups;
  for (int64_t first = 0; first < channels; first += L * M) {
    V key[M], beaten[M];
    lay_side_by_side<Key, M>(keys + first, key);
    for_constants<M>([&](auto m) { beaten[m] = V{} + Key(m); });  // by all before it
    for_constants<M>([&](auto i) {
      for_constants<M>([&](auto j) {
        if (j <= i) return;
        const V later = (V)(key[j] > key[i]);  // -1 where j beats i
        beaten[i] -= later;
        beaten[j] += later;
      });
    });
    V low = V{}, high = V{};
    for_constants<M>([&](auto m) {
      constexpr int kBits = 8 * sizeof(Key);
      V& word = m < kBits ? low : high;
      const Key bit = Key(1u << (m % kBits));
      word |= (V)(beaten[m] < Key(kept)) & (V{} + bit);
    });
    const int here = int(std::min<int64_t>(L, (channels - first) / M));
    typedef typename std::make_unsigned<Key>::type U;
    for (int g = 0; g < here; ++g)
      keep.set_group(first + g * M, uint32_t(U(low[g])) |
                                        (M > 8 * sizeof(Key) ? uint32_t(U(high[g])) << 16
                                                             : 0u));
  }
}

// Groups of any size; one group is unstructured selection.
template <class Key>
void select_any(const Key* keys, int64_t channels, int64_t group, int64_t kept,
                Bits& keep) {
  static thread_local std::vector<uint64_t> order;
  order.resize(group);
  for (int64_t first = 0; first < channels; first += group) {
    // Unique: among equal keys the lower channel is larger.
    for (int64_t m = 0; m < group; ++m)
      order[m] = uint64_t(uint32_t(keys[first + m])) << 32 | uint32_t(~m);
    if (kept < group)
      std::nth_element(order.begin(), order.begin() + kept, order.end(),
                       [](uint64_t a, uint64_t b) { return a > b; });
    for (int64_t i = 0; i < kept; ++i) keep.set(first + uint32_t(~order[i]));
  }
}

template <class Key>
void select(const Key* keys, int64_t channels, int64_t group, int64_t kept, Bits& keep) {
  const int n = int(kept);
  switch (group) {
    case 4: return select_groups<Key, 4>(keys, channels, n, keep);
    case 8: return select_groups<Key, 8>(keys, channels, n, keep);
    case 16: return select_groups<Key, 16>(keys, channels, n, keep);
    case 32: return select_groups<Key, 32>(keys, channels, n, keep);
    default: return select_any(keys, channels, group, kept, keep);
  }
}

}  // namespace nms
