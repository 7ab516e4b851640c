// The operators of csham/ops/library.py on the CPU: tensors in, tensors out, the work in kernels.cpp.
#include <ATen/Version.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace csham {
namespace {

// The instruction set is torch's choice, which the environment variable ATEN_CPU_CAPABILITY can lower.
const Kernels& kernels() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return AVX512::kernels;
  if (capability == "AVX2") return AVX2::kernels;
#endif
  return DEFAULT::kernels;
}

Map map_of(const Tensor& x) {
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

Carry carry(const Tensor& x) {
  const Sizes n(x);
  const int32_t type = aoti_torch_dtype_float32();
  return {expanded_zero({n.B, n.C, n.H, n.W}, x.type()), expanded_zero({n.B, n.C}, type),
          expanded_zero({n.B, 1, n.H, n.W}, type), expanded_zero({n.B, 1, n.H, n.W}, type)};
}

ChannelGate channel_gate(Operands& small, const Tensor& avg_weight, const Tensor& avg_bias, const Tensor& max_weight,
                         const Tensor& max_bias, const Tensor& fuse_weight, const Tensor& fuse_bias, bool relu) {
  const int64_t k = avg_weight.numel();
  return {small(avg_weight, k),      small(avg_bias, 1),  small(max_weight, k), small(max_bias, 1),
          small(fuse_weight, 2 * k), small(fuse_bias, 1), k,                    relu};
}

auto channel_pool(const Tensor& x, bool maximum) {
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor mean = empty({n.B, n.C}), max = maximum ? empty({n.B, n.C}) : none();
  kernels().channel_pool(map, data(x), floats(mean), floats(max));
  return std::tuple_cat(std::make_tuple(std::move(mean), std::move(max)), carry(x));
}

Tensor channel_pool_backward(const Optional& dz, const Tensor& x, const Optional& w, const Optional& s,
                             const Tensor& dmean, const Optional& dmax, const Optional& max) {
  Operands small;
  const Sizes n(x);
  PoolBackward p{};
  const Map map = map_of(x);
  Tensor dx = empty_like(x);
  p.dz = small.like(x, dz), p.x = data(x);
  p.w = small(w, n.channels()), p.s = small(s, n.positions());
  p.dchannel_mean = small(dmean, n.channels()), p.dchannel_max = small(dmax, n.channels());
  p.channel_max = small(max, n.channels());
  p.dx = dx.data();
  kernels().pool_backward(map, p);
  return dx;
}

auto position_pool(const Tensor& x, const Optional& w, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor mean = empty({n.B, 1, n.H, n.W}), max = empty({n.B, 1, n.H, n.W});
  Tensor neighbors = neighbor_weight ? empty({n.B, 1, n.h, n.w}) : none();
  kernels().position_pool(map, data(x), small(w, n.channels()), small(neighbor_weight, 9 * n.C), floats(mean),
                          floats(max), floats(neighbors));
  return std::tuple_cat(std::make_tuple(std::move(mean), std::move(max), std::move(neighbors)), carry(x));
}

// What both backward operators say of the statistics over the channels.
void set_positions(Operands& small, PoolBackward& p, const Sizes& n, const auto& dmean, const auto& dmax,
                   const auto& max, const auto& ties, const Optional& dneighbors, const Optional& neighbor_weight) {
  p.dmean = small(dmean, n.positions()), p.dmax = small(dmax, n.positions());
  p.position_max = small(max, n.positions()), p.ties = small(ties, n.positions());
  p.dneighbors = small(dneighbors, n.neighbors()), p.filters = small(neighbor_weight, 9 * n.C);
}

std::tuple<Tensor, Tensor, Tensor> position_pool_backward(
    const Optional& dz, const Tensor& x, const Optional& w, const Optional& s, const Optional& position_w,
    const Tensor& dmean, const Tensor& dmax, const Tensor& max, const Tensor& ties, const Optional& dneighbors,
    const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  PoolBackward p{};
  const Map map = map_of(x);
  Tensor dx = empty_like(x), dw = position_w ? empty({n.B, n.C}) : none();
  Tensor dfilters = neighbor_weight ? empty(neighbor_weight->sizes()) : none();
  p.dz = small.like(x, dz), p.x = data(x);
  p.w = small(w, n.channels()), p.s = small(s, n.positions()), p.wp = small(position_w, n.channels());
  set_positions(small, p, n, dmean, dmax, max, ties, dneighbors, neighbor_weight);
  p.dx = dx.data(), p.dwp = floats(dw), p.dfilters = floats(dfilters);
  kernels().pool_backward(map, p);
  return {std::move(dx), std::move(dw), std::move(dfilters)};
}

auto hybrid_pool(const Tensor& x, const Tensor& avg_weight, const Tensor& avg_bias, const Tensor& max_weight,
                 const Tensor& max_bias, const Tensor& fuse_weight, const Tensor& fuse_bias, bool relu, bool positions,
                 bool weighted, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  const ChannelGate gate =
      channel_gate(small, avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias, relu);
  Tensor w = empty({n.B, n.C}), channel_mean = empty({n.B, n.C}), channel_max = empty({n.B, n.C});
  Tensor mean = positions ? empty({n.B, 1, n.H, n.W}) : none(), max = empty_like(mean);
  Tensor neighbors = neighbor_weight ? empty({n.B, 1, n.h, n.w}) : none();
  kernels().hybrid_pool(map, data(x), gate, positions, weighted, small(neighbor_weight, 9 * n.C), floats(w),
                        floats(channel_mean), floats(channel_max), floats(mean), floats(max), floats(neighbors));
  return std::tuple_cat(std::make_tuple(std::move(w), std::move(channel_mean), std::move(channel_max), std::move(mean),
                                        std::move(max), std::move(neighbors)),
                        carry(x));
}

std::tuple<Tensor, Tensor, Tensor> hybrid_pool_backward(
    const Optional& dz, const Tensor& x, const Optional& w, const Optional& s, const Tensor& avg_weight,
    const Tensor& avg_bias, const Tensor& max_weight, const Tensor& max_bias, const Tensor& fuse_weight,
    const Tensor& fuse_bias, bool relu, bool weighted, const Tensor& channel_w, const Tensor& channel_mean,
    const Tensor& channel_max, const Optional& dchannel_w, const Optional& dmean, const Optional& dmax,
    const Optional& max, const Optional& ties, const Optional& dneighbors, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  PoolBackward p{};
  const Map map = map_of(x);
  const ChannelGate gate =
      channel_gate(small, avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias, relu);
  Tensor dx = empty_like(x), dgate = empty({gate.parameters()});
  Tensor dfilters = neighbor_weight ? empty(neighbor_weight->sizes()) : none();
  p.dz = small.like(x, dz), p.x = data(x);
  p.w = small(w, n.channels()), p.s = small(s, n.positions());
  p.wp = max && weighted ? small(channel_w, n.channels()) : nullptr;
  set_positions(small, p, n, dmean, dmax, max, ties, dneighbors, neighbor_weight);
  p.channel_max = small(channel_max, n.channels()), p.channel_mean = small(channel_mean, n.channels());
  p.gate = &gate, p.dchannel_w = small(dchannel_w, n.channels());
  p.dx = dx.data(), p.dfilters = floats(dfilters), p.dgate = floats(dgate);
  kernels().pool_backward(map, p);
  return {std::move(dx), std::move(dgate), std::move(dfilters)};
}

Tensor scale(const Tensor& x, const Optional& w, const Optional& s, const Optional& shortcut, bool relu,
             const Optional& position_w, const Optional& position_max, const Tensor& carry_z, const Tensor& carry_w,
             const Tensor& carry_s, const Tensor& carry_ties) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor y = empty_like(x);
  kernels().scale(map, data(x), small(w, n.channels()), small(s, n.positions()), small.like(x, shortcut), relu,
                  y.data());
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scale_backward(const Tensor& dy, const Tensor& x, const Optional& w,
                                                          const Optional& s, const Optional& position_w,
                                                          const Optional& position_max, const Optional& y) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor dz = y ? empty_like(x) : none(x.type());
  Tensor dw = w ? empty({n.B, n.C}) : none(), ds = s ? empty({n.B, 1, n.H, n.W}) : none();
  Tensor ties = position_max ? empty({n.B, 1, n.H, n.W}) : none();
  kernels().scale_backward(map, small.like(x, dy), data(x), small(w, n.channels()), small(s, n.positions()),
                           small(position_w, n.channels()), small(position_max, n.positions()), small.like(x, y),
                           y ? dz.data() : nullptr, floats(dw), floats(ds), floats(ties));
  return {std::move(dz), std::move(dw), std::move(ds), std::move(ties)};
}

SpatialGate gate_of(Operands& small, const Tensor& mean, const Tensor& max, const Optional& neighbors, const Tensor& weight, bool relu,
                    const Norm& norm, const Norm& neighbor_norm) {
  const Sizes n(mean);
  const int64_t k = weight.size(3);
  SpatialGate gate{};
  gate.B = n.B, gate.H = n.H, gate.W = n.W, gate.kernel_size = k, gate.coarse_H = n.h, gate.coarse_W = n.w;
  gate.mean = small(mean, n.positions()), gate.max = small(max, n.positions());
  gate.neighbors = small(neighbors, n.neighbors()), gate.weight = small(weight, 2 * k * k);
  gate.norm = norm, gate.neighbor_norm = neighbor_norm, gate.relu = relu;
  return gate;
}

// The statistics are written in training only, and then to arrays of our own.
Norm norm_of(Operands& small, const Optional& weight, const Optional& bias, const Tensor& mean, const Tensor& var, bool training,
             double eps) {
  return {small(weight, 1), small(bias, 1), eps, training, const_cast<float*>(small(mean, 1)),
          const_cast<float*>(small(var, 1))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> spatial_gate(
    const Tensor& mean, const Tensor& max, const Optional& neighbors, const Tensor& weight, const Optional& norm_weight,
    const Optional& norm_bias, const Optional& norm_mean, const Optional& norm_var,
    const Optional& neighbor_norm_weight, const Optional& neighbor_norm_bias, const Optional& neighbor_norm_mean,
    const Optional& neighbor_norm_var, bool training, bool neighbor_training, double eps, double neighbor_eps,
    bool relu) {
  Operands small;
  Tensor s = empty_like(mean), position = empty_like(mean);
  // Zero where an empty batch or a missing term leaves nothing to be written.
  Tensor m = zeros(1), v = zeros(1), nm = zeros(1), nv = zeros(1);
  const Norm norm = training ? norm_of(small, norm_weight, norm_bias, m, v, true, eps)
                             : norm_of(small, norm_weight, norm_bias, norm_mean.value(), norm_var.value(), false, eps);
  const Norm neighbor_norm =
      neighbor_training || !neighbors
          ? norm_of(small, neighbor_norm_weight, neighbor_norm_bias, nm, nv, neighbor_training, neighbor_eps)
          : norm_of(small, neighbor_norm_weight, neighbor_norm_bias, neighbor_norm_mean.value(), neighbor_norm_var.value(),
                    false, neighbor_eps);
  SpatialGate gate = gate_of(small, mean, max, neighbors, weight, relu, norm, neighbor_norm);
  gate.position = floats(position);
  gate.s = floats(s);
  kernels().spatial_gate(gate);
  return {std::move(s), std::move(position), std::move(m), std::move(v), std::move(nm), std::move(nv)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_gate_backward(
    const Tensor& ds, const Tensor& s, const Tensor& position, const Tensor& mean, const Tensor& max,
    const Optional& neighbors, const Tensor& weight, const Optional& norm_weight, const Optional& norm_bias,
    const Optional& norm_mean, const Optional& norm_var, const Optional& neighbor_norm_weight,
    const Optional& neighbor_norm_bias, const Optional& neighbor_norm_mean, const Optional& neighbor_norm_var,
    bool training, bool neighbor_training, double eps, double neighbor_eps, bool relu) {
  Operands small;
  const Sizes n(mean);
  const Tensor none_used = zeros(1);
  SpatialGate gate = gate_of(
      small, mean, max, neighbors, weight, relu,
      norm_of(small, norm_weight, norm_bias, norm_mean.value(), norm_var.value(), training, eps),
      norm_of(small, neighbor_norm_weight, neighbor_norm_bias, neighbors ? neighbor_norm_mean.value() : none_used,
              neighbors ? neighbor_norm_var.value() : none_used, neighbor_training, neighbor_eps));
  gate.position = const_cast<float*>(small(position, n.positions()));
  gate.s = const_cast<float*>(small(s, n.positions()));
  Tensor dmean = empty_like(mean), dmax = empty_like(mean), dweight = empty(weight.sizes());
  Tensor dneighbors = neighbors ? empty(neighbors->sizes()) : none(), dnorms = zeros(4);
  float* norms = floats(dnorms);
  kernels().spatial_gate_backward(gate, {small(ds, n.positions()), floats(dmean), floats(dmax), floats(dweight),
                                         floats(dneighbors), norms, norms + 1, norms + 2, norms + 3});
  return {std::move(dmean), std::move(dmax), std::move(dneighbors), std::move(dweight), std::move(dnorms)};
}

// PyTorch keeps these as long as the process lives.
const bool registered = [] {
  TorchLibraryHandle library = nullptr;
  aoti_torch_library_init_impl("csham_cpu", "CPU", "operators.cpp", __LINE__, &library);
  aoti_torch_library_impl(library, "channel_pool", boxed<channel_pool>);
  aoti_torch_library_impl(library, "channel_pool_backward", boxed<channel_pool_backward>);
  aoti_torch_library_impl(library, "position_pool", boxed<position_pool>);
  aoti_torch_library_impl(library, "position_pool_backward", boxed<position_pool_backward>);
  aoti_torch_library_impl(library, "hybrid_pool", boxed<hybrid_pool>);
  aoti_torch_library_impl(library, "hybrid_pool_backward", boxed<hybrid_pool_backward>);
  aoti_torch_library_impl(library, "scale", boxed<scale>);
  aoti_torch_library_impl(library, "scale_backward", boxed<scale_backward>);
  aoti_torch_library_impl(library, "spatial_gate", boxed<spatial_gate>);
  aoti_torch_library_impl(library, "spatial_gate_backward", boxed<spatial_gate_backward>);
  return true;
}();

}  // namespace
}  // namespace csham
