// How an operator calls its kernel, of which there is one for each instruction set.
//
// Every .cpp file of this folder is compiled once for each instruction set, with CPU_CAPABILITY, for the kernels, all of
// them together; and once without, for the operators: tensors in, tensors out. Arrays are as in sample.h, over a batch:
// statistics and weights of channels (B, C), of positions (B, H * W). Null pointers mean what they mean there.
#pragma once

#include "sample.h"

#include <string>

#if !defined(CPU_CAPABILITY)
#include <ATen/Version.h>
#endif

// CSHAM_KERNEL(void f(int)) declares f for each instruction set. CSHAM_BEST(f) is the one to call: the instruction set
// is torch's choice, which the environment variable ATEN_CPU_CAPABILITY can lower.
#if defined(__x86_64__)
#define CSHAM_KERNEL(...)              \
  namespace DEFAULT { __VA_ARGS__; }   \
  namespace AVX2 { __VA_ARGS__; }      \
  namespace AVX512 { __VA_ARGS__; }
#define CSHAM_BEST(kernel) ::csham::best(DEFAULT::kernel, AVX2::kernel, AVX512::kernel)
#else
#define CSHAM_KERNEL(...) namespace DEFAULT { __VA_ARGS__; }
#define CSHAM_BEST(kernel) DEFAULT::kernel
#endif

namespace csham {

struct Map {
  int64_t B;
  Size size;
  bool channels_last;
  bool bfloat16;
  bool turned = false;  // contiguous, but a kernel turns its images to channels_last, one by one (batch.h)
};

#if !defined(CPU_CAPABILITY)
template <typename F>
F* best(F* plain, F* avx2, F* avx512) {
  static const std::string capability = at::get_cpu_capability();
  return capability == "AVX512" ? avx512 : capability == "AVX2" ? avx2 : plain;
}
#endif

}  // namespace csham
