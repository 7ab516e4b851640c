// at::parallel_for without what it asks of a PyTorch of one version: the threads are PyTorch's, and so is their number.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <stdexcept>

#if defined(_OPENMP)
#include <omp.h>
#elif __has_include(<torch/csrc/stable/c/shim.h>)
#include <torch/csrc/stable/c/shim.h>
#if defined(TORCH_VERSION_2_10_0) && TORCH_FEATURE_VERSION >= TORCH_VERSION_2_10_0
#define CSHAM_TORCH_THREADS  // which PyTorch starts, so that they may be those of an OpenMP that is not this compiler's
#endif
#endif

namespace csham {
namespace CPU_CAPABILITY {

// Of images, whose sums are kept apart: a number that depends on the batch alone.
constexpr int64_t kGroups = 32;

// Calls functions of several threads; what the first of them throws is thrown again once all have ended.
class Caught {
 public:
  template <typename F>
  void run(const F& f) {
    try {
      f();
    } catch (...) {
      if (!failed_.test_and_set()) error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::exception_ptr error_;
  std::atomic_flag failed_;
};

// f(begin, end) for parts of a range, side by side where each part would be longer than grain.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin >= end) return;
  [[maybe_unused]] Caught caught;
#if defined(_OPENMP)
  const int64_t most = (end - begin + grain - 1) / grain;
  // at::get_num_threads also gives a new thread the number that torch.set_num_threads was told.
  if (most > 1 && !omp_in_parallel() && at::get_num_threads() > 1) {
    // Without num_threads(most), which makes GCC's OpenMP build its threads anew (as PyTorch found).
#pragma omp parallel
    {
      const int64_t threads = std::min<int64_t>(omp_get_num_threads(), most);
      const int64_t length = (end - begin + threads - 1) / threads;
      const int64_t first = begin + omp_get_thread_num() * length;
      if (first < end) caught.run([&] { f(first, std::min(end, first + length)); });
    }
    return caught.rethrow();
  }
#elif defined(CSHAM_TORCH_THREADS)
  const auto part = [&](int64_t first, int64_t last) { caught.run([&] { f(first, last); }); };
  const auto call = [](int64_t first, int64_t last, void* of) { (*static_cast<decltype(part)*>(of))(first, last); };
  if (torch_parallel_for(begin, end, grain, call, const_cast<void*>(static_cast<const void*>(&part))))
    throw std::runtime_error("PyTorch cannot start its threads");
  return caught.rethrow();
#endif
  f(begin, end);
}

}  // namespace CPU_CAPABILITY
}  // namespace csham
