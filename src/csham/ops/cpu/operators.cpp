// The operators of csham/ops/library.py on the CPU: tensors in, tensors out, the work in kernels.cpp.
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace csham {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

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
  TORCH_CHECK(x.dim() == 4, "csham: expected a feature map (B, C, H, W), got ", x.sizes());
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
              "csham: the CPU kernels take float32 and bfloat16, got ", x.scalar_type());
  const bool contiguous = x.is_contiguous();
  TORCH_CHECK(contiguous || x.is_contiguous(at::MemoryFormat::ChannelsLast),
              "csham: expected a map that is contiguous or channels_last");
  return {x.size(0), {x.size(1), x.size(2), x.size(3)}, !contiguous, x.scalar_type() == at::kBFloat16};
}

// A map in the memory format of x. Eager code hands in nothing else; a compiler may lay the maps that it keeps otherwise.
Tensor like(const Tensor& other, const Tensor& x) {
  TORCH_CHECK(other.sizes() == x.sizes() && other.scalar_type() == x.scalar_type(),
              "csham: expected a map of the shape and type of x, ", x.sizes(), " ", x.scalar_type(), ", got ",
              other.sizes(), " ", other.scalar_type());
  return other.contiguous(x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast);
}

Optional like(const Optional& other, const Tensor& x) { return other ? Optional(like(*other, x)) : Optional(); }

const void* data(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }

// Small operands as contiguous float32, kept as long as the operator runs.
struct Operands {
  const float* operator()(const Tensor& t, int64_t numel) {
    TORCH_CHECK(t.scalar_type() == at::kFloat && t.numel() == numel, "csham: expected ", numel, " float32 values, got ",
                t.sizes(), " of ", t.scalar_type());
    kept.push_back(t.contiguous());
    return kept.back().const_data_ptr<float>();
  }
  const float* operator()(const Optional& t, int64_t numel) { return t ? (*this)(*t, numel) : nullptr; }
  std::vector<Tensor> kept;
};

Tensor empty(const Tensor& like, at::IntArrayRef shape) {
  return at::empty(shape, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
}

Tensor none(const Tensor& like) { return empty(like, {0}); }

float* data(Tensor& t) { return t.numel() == 0 ? nullptr : t.mutable_data_ptr<float>(); }

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
  auto zero = [&](at::ScalarType type) { return at::zeros({}, x.options().dtype(type)); };
  return {zero(x.scalar_type()).expand(x.sizes()), zero(at::kFloat).expand({n.B, n.C}),
          zero(at::kFloat).expand({n.B, 1, n.H, n.W}), zero(at::kFloat).expand({n.B, 1, n.H, n.W})};
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
  Tensor mean = empty(x, {n.B, n.C}), max = maximum ? empty(x, {n.B, n.C}) : none(x);
  kernels().channel_pool(map, x.const_data_ptr(), data(mean), data(max));
  return std::tuple_cat(std::make_tuple(mean, max), carry(x));
}

Tensor channel_pool_backward(const Optional& dz, const Tensor& x, const Optional& w, const Optional& s,
                             const Tensor& dmean, const Optional& dmax, const Optional& max) {
  Operands small;
  const Sizes n(x);
  PoolBackward p{};
  const Map map = map_of(x);
  Tensor dx = at::empty_like(x);
  const Optional dz_like = like(dz, x);
  p.dz = data(dz_like), p.x = x.const_data_ptr();
  p.w = small(w, n.channels()), p.s = small(s, n.positions());
  p.dchannel_mean = small(dmean, n.channels()), p.dchannel_max = small(dmax, n.channels());
  p.channel_max = small(max, n.channels());
  p.dx = dx.mutable_data_ptr();
  kernels().pool_backward(map, p);
  return dx;
}

auto position_pool(const Tensor& x, const Optional& w, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor mean = empty(x, {n.B, 1, n.H, n.W}), max = empty(x, {n.B, 1, n.H, n.W});
  Tensor neighbors = neighbor_weight ? empty(x, {n.B, 1, n.h, n.w}) : none(x);
  kernels().position_pool(map, x.const_data_ptr(), small(w, n.channels()), small(neighbor_weight, 9 * n.C), data(mean),
                          data(max), data(neighbors));
  return std::tuple_cat(std::make_tuple(mean, max, neighbors), carry(x));
}

// What both backward operators say of the statistics over the channels.
void set_positions(Operands& small, PoolBackward& p, const Sizes& n, const Optional& dmean, const Optional& dmax, const Optional& max,
                   const Optional& ties, const Optional& dneighbors, const Optional& neighbor_weight) {
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
  Tensor dx = at::empty_like(x), dw = position_w ? empty(x, {n.B, n.C}) : none(x);
  Tensor dfilters = neighbor_weight ? empty(x, neighbor_weight->sizes()) : none(x);
  const Optional dz_like = like(dz, x);
  p.dz = data(dz_like), p.x = x.const_data_ptr();
  p.w = small(w, n.channels()), p.s = small(s, n.positions()), p.wp = small(position_w, n.channels());
  set_positions(small, p, n, dmean, dmax, max, ties, dneighbors, neighbor_weight);
  p.dx = dx.mutable_data_ptr(), p.dwp = data(dw), p.dfilters = data(dfilters);
  kernels().pool_backward(map, p);
  return {dx, dw, dfilters};
}

auto hybrid_pool(const Tensor& x, const Tensor& avg_weight, const Tensor& avg_bias, const Tensor& max_weight,
                 const Tensor& max_bias, const Tensor& fuse_weight, const Tensor& fuse_bias, bool relu, bool positions,
                 bool weighted, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  const ChannelGate gate = channel_gate(small, avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias, relu);
  Tensor w = empty(x, {n.B, n.C}), channel_mean = empty(x, {n.B, n.C}), channel_max = empty(x, {n.B, n.C});
  Tensor mean = positions ? empty(x, {n.B, 1, n.H, n.W}) : none(x), max = at::empty_like(mean);
  Tensor neighbors = neighbor_weight ? empty(x, {n.B, 1, n.h, n.w}) : none(x);
  kernels().hybrid_pool(map, x.const_data_ptr(), gate, positions, weighted, small(neighbor_weight, 9 * n.C), data(w),
                        data(channel_mean), data(channel_max), data(mean), data(max), data(neighbors));
  return std::tuple_cat(std::make_tuple(w, channel_mean, channel_max, mean, max, neighbors), carry(x));
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
  const ChannelGate gate = channel_gate(small, avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias, relu);
  Tensor dx = at::empty_like(x), dgate = empty(x, {gate.parameters()});
  Tensor dfilters = neighbor_weight ? empty(x, neighbor_weight->sizes()) : none(x);
  const Optional dz_like = like(dz, x);
  p.dz = data(dz_like), p.x = x.const_data_ptr();
  p.w = small(w, n.channels()), p.s = small(s, n.positions());
  p.wp = max && weighted ? small(channel_w, n.channels()) : nullptr;
  set_positions(small, p, n, dmean, dmax, max, ties, dneighbors, neighbor_weight);
  p.channel_max = small(channel_max, n.channels()), p.channel_mean = small(channel_mean, n.channels());
  p.gate = &gate, p.dchannel_w = small(dchannel_w, n.channels());
  p.dx = dx.mutable_data_ptr(), p.dfilters = data(dfilters), p.dgate = data(dgate);
  kernels().pool_backward(map, p);
  return {dx, dgate, dfilters};
}

Tensor scale(const Tensor& x, const Optional& w, const Optional& s, const Optional& shortcut, bool relu,
             const Optional& position_w, const Optional& position_max, const Tensor& carry_z, const Tensor& carry_w,
             const Tensor& carry_s, const Tensor& carry_ties) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor y = at::empty_like(x);
  const Optional shortcut_like = like(shortcut, x);
  kernels().scale(map, x.const_data_ptr(), small(w, n.channels()), small(s, n.positions()), data(shortcut_like), relu,
                  y.mutable_data_ptr());
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scale_backward(const Tensor& dy, const Tensor& x, const Optional& w,
                                                          const Optional& s, const Optional& position_w,
                                                          const Optional& position_max, const Optional& y) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor dz = y ? at::empty_like(x) : at::empty({0}, x.options());
  Tensor dw = w ? empty(x, {n.B, n.C}) : none(x), ds = s ? empty(x, {n.B, 1, n.H, n.W}) : none(x);
  Tensor ties = position_max ? empty(x, {n.B, 1, n.H, n.W}) : none(x);
  const Tensor dy_like = like(dy, x);
  const Optional y_like = like(y, x);
  kernels().scale_backward(map, dy_like.const_data_ptr(), x.const_data_ptr(), small(w, n.channels()),
                           small(s, n.positions()), small(position_w, n.channels()),
                           small(position_max, n.positions()), data(y_like), y ? dz.mutable_data_ptr() : nullptr, data(dw), data(ds), data(ties));
  return {dz, dw, ds, ties};
}

SpatialGate gate_of(Operands& small, const Tensor& mean, const Tensor& max, const Optional& neighbors, const Tensor& weight, bool relu,
                    const Norm& norm, const Norm& neighbor_norm) {
  const Sizes n(mean);
  const int64_t k = weight.size(-1);
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
  Tensor s = at::empty_like(mean), position = at::empty_like(mean);
  // Zero where an empty batch or a missing term leaves nothing to be written.
  Tensor batch = at::zeros({4}, mean.options());
  Tensor m = batch.narrow(0, 0, 1).clone(), v = m.clone(), nm = m.clone(), nv = m.clone();
  const Norm norm = training ? norm_of(small, norm_weight, norm_bias, m, v, true, eps)
                             : norm_of(small, norm_weight, norm_bias, norm_mean.value(), norm_var.value(), false, eps);
  const Norm neighbor_norm =
      neighbor_training || !neighbors
          ? norm_of(small, neighbor_norm_weight, neighbor_norm_bias, nm, nv, neighbor_training, neighbor_eps)
          : norm_of(small, neighbor_norm_weight, neighbor_norm_bias, neighbor_norm_mean.value(), neighbor_norm_var.value(),
                    false, neighbor_eps);
  SpatialGate gate = gate_of(small, mean, max, neighbors, weight, relu, norm, neighbor_norm);
  gate.position = position.mutable_data_ptr<float>();
  gate.s = s.mutable_data_ptr<float>();
  kernels().spatial_gate(gate);
  return {s, position, m, v, nm, nv};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_gate_backward(
    const Tensor& ds, const Tensor& s, const Tensor& position, const Tensor& mean, const Tensor& max,
    const Optional& neighbors, const Tensor& weight, const Optional& norm_weight, const Optional& norm_bias,
    const Optional& norm_mean, const Optional& norm_var, const Optional& neighbor_norm_weight,
    const Optional& neighbor_norm_bias, const Optional& neighbor_norm_mean, const Optional& neighbor_norm_var,
    bool training, bool neighbor_training, double eps, double neighbor_eps, bool relu) {
  Operands small;
  const Sizes n(mean);
  const Tensor none_used = at::zeros({1}, mean.options());
  SpatialGate gate = gate_of(
      small, mean, max, neighbors, weight, relu,
      norm_of(small, norm_weight, norm_bias, norm_mean.value(), norm_var.value(), training, eps),
      norm_of(small, neighbor_norm_weight, neighbor_norm_bias, neighbors ? neighbor_norm_mean.value() : none_used,
              neighbors ? neighbor_norm_var.value() : none_used, neighbor_training, neighbor_eps));
  gate.position = const_cast<float*>(small(position, n.positions()));
  gate.s = const_cast<float*>(small(s, n.positions()));
  Tensor dmean = at::empty_like(mean), dmax = at::empty_like(mean), dweight = empty(mean, weight.sizes());
  Tensor dneighbors = neighbors ? empty(mean, neighbors->sizes()) : none(mean), dnorms = at::zeros({4}, mean.options());
  float* norms = data(dnorms);
  kernels().spatial_gate_backward(gate, {small(ds, n.positions()), data(dmean), data(dmax), data(dweight),
                                         data(dneighbors), norms, norms + 1, norms + 2, norms + 3});
  return {dmean, dmax, dneighbors, dweight, dnorms};
}

}  // namespace
}  // namespace csham

TORCH_LIBRARY_IMPL(csham_cpu, CPU, m) {
  m.impl("channel_pool", csham::channel_pool);
  m.impl("channel_pool_backward", csham::channel_pool_backward);
  m.impl("position_pool", csham::position_pool);
  m.impl("position_pool_backward", csham::position_pool_backward);
  m.impl("hybrid_pool", csham::hybrid_pool);
  m.impl("hybrid_pool_backward", csham::hybrid_pool_backward);
  m.impl("scale", csham::scale);
  m.impl("scale_backward", csham::scale_backward);
  m.impl("spatial_gate", csham::spatial_gate);
  m.impl("spatial_gate_backward", csham::spatial_gate_backward);
}
