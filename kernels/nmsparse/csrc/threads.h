// Work split over the OpenMP threads of the process, and per-thread scratch memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace nms {

// fn(part, parts) on `threads` threads; inline for one, which needs no OpenMP at all.
template <class F>
void parallel(int threads, const F& fn) {
  if (threads <= 1) {
    fn(0, 1);
    return;
  }
  // The loop is over parts, not over thread numbers: right for any team size.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int part = 0; part < threads; ++part) fn(part, threads);
}

struct Range {
  int64_t begin, end;
};

// Part of [0, n) in whole multiples of `unit`.
inline Range split(int64_t n, int64_t unit, int part, int parts) {
  const int64_t units = (n + unit - 1) / unit;
  const int64_t begin = units * part / parts * unit;
  const int64_t end = units * (part + 1) / parts * unit;
  return {std::min(begin, n), std::min(end, n)};
}

// Memory that grows and stays with its thread: no allocation in the steady state.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  template <class T>
  T* take(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      size_ = data_ ? bytes : 0;
      if (!data_) throw std::bad_alloc();
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nms
