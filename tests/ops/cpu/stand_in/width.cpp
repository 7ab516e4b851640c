// Something that differs between the instruction sets, and compiles in no time; and what the tests of building ask the
// library: which kernels are in it and, with WITH_TORCH, how many threads it uses.
#if defined(CPU_CAPABILITY)

namespace csham {
namespace CPU_CAPABILITY {

int width() {
#if defined(__AVX512F__)
  return 16;
#elif defined(__AVX2__)
  return 8;
#else
  return 4;
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace csham

#else

namespace csham {
namespace DEFAULT {
int width();
}
#if defined(__x86_64__)
namespace AVX2 {
int width();
}
namespace AVX512 {
int width();
}
#endif
}  // namespace csham

extern "C" __attribute__((visibility("default"))) int stand_in_widths() {
#if defined(__x86_64__)
  return csham::DEFAULT::width() + 100 * csham::AVX2::width() + 10000 * csham::AVX512::width();
#else
  return csham::DEFAULT::width();
#endif
}

#if defined(WITH_TORCH)
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <mutex>
#include <set>
#include <thread>

int64_t threads(int64_t images) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  at::parallel_for(0, images, 1, [&](int64_t, int64_t) {
    const std::lock_guard<std::mutex> guard(mutex);
    seen.insert(std::this_thread::get_id());
  });
  return static_cast<int64_t>(seen.size());
}

TORCH_LIBRARY(csham_stand_in, library) {
  library.def("threads(int images) -> int");
  library.impl("threads", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(threads));
}
#endif

#endif
