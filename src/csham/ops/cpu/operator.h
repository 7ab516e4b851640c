// What operators need: their arguments checked and laid out as the kernels read them, results, registration.
#pragma once

#include "kernel.h"
#include "tensors.h"

#include <string>
#include <tuple>
#include <utility>
#include <vector>

// Registers the function of this name as the operator of this name.
#define CSHAM_OPERATOR(name) const bool name##_registered = ::csham::implement(#name, boxed<name>)

namespace csham {

// PyTorch keeps what is registered as long as the process lives.
inline bool implement(const char* name, void (*function)(StableIValue*, uint64_t, uint64_t)) {
  static const TorchLibraryHandle library = [] {
    TorchLibraryHandle made = nullptr;
    aoti_torch_library_init_impl("csham_cpu", "CPU", "operator.h", __LINE__, &made);
    return made;
  }();
  aoti_torch_library_impl(library, name, function);
  return true;
}

inline Map map_of(const Tensor& x) {
  if (x.dim() != 4) fail("expected a feature map (B, C, H, W), got " + described(x));
  if (!is_float(x) && !is_bfloat16(x)) fail("the CPU kernels take float32 and bfloat16, got " + described(x));
  const bool contiguous = x.is_contiguous();
  if (!contiguous && !is_channels_last(x)) fail("expected a map that is contiguous or channels_last");
  return {x.size(0), {x.size(1), x.size(2), x.size(3)}, !contiguous, is_bfloat16(x)};
}

// Operands as the kernels read them, kept as long as the operator runs.
struct Operands {
  // Contiguous float32.
  const float* operator()(const Tensor& t, int64_t numel) {
    if (!is_float(t) || t.numel() != numel)
      fail("expected " + std::to_string(numel) + " float32 values, got " + described(t));
    return static_cast<const float*>(t.is_contiguous() ? t.data() : copied(t, dense_strides(t.sizes())));
  }
  const float* operator()(const Optional& t, int64_t numel) { return t ? (*this)(*t, numel) : nullptr; }

  // A map in the memory format of x. Eager code hands in nothing else; a compiler may lay the maps that it keeps
  // otherwise.
  const void* like(const Tensor& x, const Tensor& other) {
    if (!same_shape(other, x) || other.type() != x.type())
      fail("expected a map of the shape and type of x, " + described(x) + ", got " + described(other));
    const bool contiguous = x.is_contiguous();
    if (contiguous ? other.is_contiguous() : is_channels_last(other)) return other.data();
    return copied(other, contiguous ? dense_strides(x.sizes()) : dense_strides(x.sizes(), kChannelsLast));
  }
  const void* like(const Tensor& x, const Optional& other) { return other ? like(x, *other) : nullptr; }

 private:
  const void* copied(const Tensor& t, Shape strides) {
    kept.push_back(copy(t, strides));
    return kept.back().data();
  }
  std::vector<Tensor> kept;
};

struct Sizes {
  explicit Sizes(const Tensor& x)
      : B(x.size(0)), C(x.size(1)), H(x.size(2)), W(x.size(3)), h((H / 2 + 1) / 2), w((W / 2 + 1) / 2) {}
  int64_t B, C, H, W, h, w;
  int64_t channels() const { return B * C; }
  int64_t positions() const { return B * H * W; }
  int64_t neighbors() const { return B * h * w; }
};

using Carry = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// See csham/ops/operators/carry.py.
inline Carry carry(const Tensor& x) {
  const Sizes n(x);
  const int32_t type = aoti_torch_dtype_float32();
  return {expanded_zero({n.B, n.C, n.H, n.W}, x.type()), expanded_zero({n.B, n.C}, type),
          expanded_zero({n.B, 1, n.H, n.W}, type), expanded_zero({n.B, 1, n.H, n.W}, type)};
}

}  // namespace csham
