// Tensors and operators by PyTorch's stable C interface (aoti_torch_*), in what PyTorch 2.8 has of it, so that one
// library serves 2.8 and every later version.
//
// What is not in it, and is asked for all the same: at::get_num_threads (parallel.h), at::get_cpu_capability
// (kernel.h) and Sleef's exp, which at::vec calls. A PyTorch without one of them refuses to load the library.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace csham {

using Shape = std::span<const int64_t>;

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error("csham: " + message); }

inline void succeed(AOTITorchError error, const char* what) {
  if (error != AOTI_TORCH_SUCCESS) fail(std::string("PyTorch cannot ") + what);
}

// A tensor that is ours to release.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle handle() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  int64_t dim() const { return ask<int64_t>(aoti_torch_get_dim); }
  int64_t numel() const { return ask<int64_t>(aoti_torch_get_numel); }
  int32_t type() const { return ask<int32_t>(aoti_torch_get_dtype); }
  bool is_contiguous() const { return ask<bool>(aoti_torch_is_contiguous); }
  void* data() const { return ask<void*>(aoti_torch_get_data_ptr); }
  Shape sizes() const { return {ask<int64_t*>(aoti_torch_get_sizes), static_cast<size_t>(dim())}; }
  Shape strides() const { return {ask<int64_t*>(aoti_torch_get_strides), static_cast<size_t>(dim())}; }
  int64_t size(int64_t d) const { return sizes()[d]; }

 private:
  template <typename T>
  T ask(AOTITorchError (*question)(AtenTensorHandle, T*)) const {
    T answer{};
    succeed(question(handle_, &answer), "tell about a tensor");
    return answer;
  }
  AtenTensorHandle handle_;
};

using Optional = std::optional<Tensor>;

inline bool is_float(const Tensor& t) { return t.type() == aoti_torch_dtype_float32(); }
inline bool is_bfloat16(const Tensor& t) { return t.type() == aoti_torch_dtype_bfloat16(); }

// [2, 3] of float32
inline std::string described(const Tensor& t) {
  std::string text = "[";
  for (const int64_t size : t.sizes()) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  const std::string type = is_float(t) ? "float32" : is_bfloat16(t) ? "bfloat16" : "type " + std::to_string(t.type());
  return text + "] of " + type;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const Shape first = a.sizes(), second = b.sizes();
  return first.size() == second.size() && std::equal(first.begin(), first.end(), second.begin());
}

// Strides with the last of order innermost; no order: as a contiguous tensor has them.
inline std::vector<int64_t> dense_strides(Shape sizes, std::span<const int> order = {}) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    const size_t d = order.empty() ? i : order[i];
    strides[d] = step;
    step *= std::max<int64_t>(1, sizes[d]);
  }
  return strides;
}

inline constexpr std::array<int, 4> kChannelsLast = {0, 2, 3, 1};

inline bool is_channels_last(const Tensor& map) {
  const Shape sizes = map.sizes(), strides = map.strides();
  const std::vector<int64_t> dense = dense_strides(sizes, kChannelsLast);
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1 && strides[d] != dense[d]) return false;
  return true;
}

inline Tensor empty(Shape sizes, Shape strides, int32_t type) {
  AtenTensorHandle made = nullptr;
  succeed(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), type,
                                   aoti_torch_device_type_cpu(), 0, &made),
          "allocate a tensor: there is too little memory");
  return Tensor(made);
}

inline Tensor empty(Shape sizes) { return empty(sizes, dense_strides(sizes), aoti_torch_dtype_float32()); }
inline Tensor empty(std::initializer_list<int64_t> sizes) { return empty(Shape(sizes.begin(), sizes.size())); }
inline Tensor none(int32_t type = aoti_torch_dtype_float32()) {
  const std::array<int64_t, 1> sizes = {0}, strides = {1};
  return empty(sizes, strides, type);
}

inline Tensor empty_like(const Tensor& x) { return empty(x.sizes(), x.strides(), x.type()); }

// One zero, seen as an array.
inline Tensor expanded_zero(std::initializer_list<int64_t> sizes, int32_t type) {
  const std::array<int64_t, 4> strides{};
  Tensor zero = empty(Shape(sizes.begin(), sizes.size()), Shape(strides.data(), sizes.size()), type);
  if (zero.numel() != 0) std::memset(zero.data(), 0, type == aoti_torch_dtype_float32() ? 4 : 2);
  return zero;
}

inline Tensor zeros(int64_t count) {
  Tensor made = empty({count});
  std::memset(made.data(), 0, count * sizeof(float));
  return made;
}

inline Tensor copy(const Tensor& from, Shape strides) {
  Tensor made = empty(from.sizes(), strides, from.type());
  succeed(aoti_torch_copy_(made.handle(), from.handle(), false), "copy a tensor");
  return made;
}

inline const void* data(const Tensor& t) { return t.data(); }
inline const void* data(const Optional& t) { return t ? t->data() : nullptr; }
inline float* floats(Tensor& t) { return t.numel() == 0 ? nullptr : static_cast<float*>(t.data()); }

// An argument of an operator, which the operator owns: a handle, a pointer to one on the heap, or the value itself.
template <typename T>
T taken(StableIValue value) {
  if constexpr (std::is_same_v<T, Optional>) {
    auto* inner = taken<StableIValue*>(value);
    if (inner == nullptr) return {};
    Optional made(taken<Tensor>(*inner));
    delete inner;
    return made;
  } else if constexpr (std::is_same_v<T, Tensor>) {
    return Tensor(taken<AtenTensorHandle>(value));
  } else {
    T made;
    std::memcpy(&made, &value, sizeof(T));
    return made;
  }
}

inline StableIValue given(Tensor& t) {
  const AtenTensorHandle handle = t.release();
  StableIValue value = 0;
  std::memcpy(&value, &handle, sizeof(handle));
  return value;
}

inline void give(StableIValue* stack, Tensor result) { *stack = given(result); }

template <typename... Tensors>
void give(StableIValue* stack, std::tuple<Tensors...> results) {
  std::apply([&](auto&... result) { ((*stack++ = given(result)), ...); }, results);
}

template <typename Result, typename... Arguments, size_t... i>
void call(Result (*function)(Arguments...), StableIValue* stack, std::index_sequence<i...>) {
  const std::tuple<std::decay_t<Arguments>...> arguments{taken<std::decay_t<Arguments>>(stack[i])...};
  give(stack, std::apply(function, arguments));
}

template <typename Result, typename... Arguments>
void call(Result (*function)(Arguments...), StableIValue* stack) {
  call(function, stack, std::index_sequence_for<Arguments...>());
}

// An operator as the interface calls it: arguments on the stack, in whose place the results come.
template <auto function>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  call(function, stack);
}

}  // namespace csham
