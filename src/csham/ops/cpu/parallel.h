// at::parallel_for without what it asks of a PyTorch of one version: the threads are PyTorch's, and so is their number.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace csham {
namespace CPU_CAPABILITY {

// Of images, whose sums are kept apart: a number that depends on the batch alone.
constexpr int64_t kGroups = 32;

// f(begin, end) for parts of a range, side by side where each part would be longer than grain.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin >= end) return;
#if defined(_OPENMP)
  const int64_t most = (end - begin + grain - 1) / grain;
  // at::get_num_threads also gives a new thread the number that torch.set_num_threads was told.
  if (most > 1 && !omp_in_parallel() && at::get_num_threads() > 1) {
    std::exception_ptr error;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    // Without num_threads(most), which makes GCC's OpenMP build its threads anew (as PyTorch found).
#pragma omp parallel
    {
      const int64_t threads = std::min<int64_t>(omp_get_num_threads(), most);
      const int64_t length = (end - begin + threads - 1) / threads;
      const int64_t first = begin + omp_get_thread_num() * length;
      if (first < end) {
        try {
          f(first, std::min(end, first + length));
        } catch (...) {
          if (!failed.test_and_set()) error = std::current_exception();
        }
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  f(begin, end);
}

}  // namespace CPU_CAPABILITY
}  // namespace csham
