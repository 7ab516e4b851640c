// CSHAM's channel weights, and then the statistics over the channels of w * x, or of x.
#include "pool_backward.h"

namespace csham {
CSHAM_KERNEL(void hybrid_pool(const Map&, const void* x, const float* affine, const ChannelGate&, bool positions,
                              bool weighted, const float* filters, float* w, float* channel_mean, float* channel_max, float* mean,
                              float* max, float* neighbors))
}  // namespace csham

#if defined(CPU_CAPABILITY)
#include "batch.h"
#include "channel_gate.h"

namespace csham::CPU_CAPABILITY {

// Channels of one image that are read twice in a row should stay in the second-level cache.
constexpr int64_t kBlockBytes = 128 << 10;

void hybrid_pool(const Map& given, const void* x, const float* affine, const ChannelGate& gate, bool positions,
                 bool weighted, const float* filters, float* w, float* channel_mean, float* channel_max, float* mean,
                 float* max, float* neighbors) {
  const Map map = filters == nullptr ? given : turned_if_small(given);
  const Size size = map.size;
  const Filters taps(filters, map);
  const Normed norm(affine, map);
  // A channel's weight needs the statistics of the channels around it only.
  const int64_t plane = size.positions() * (map.bfloat16 ? 2 : 4);
  const bool whole = map.channels_last || !positions;
  const int64_t block = whole ? size.C : std::max<int64_t>(8, kBlockBytes / plane / 8 * 8);
  const int64_t reach = 2 * (gate.kernel_size / 2);
  for_each_image(map, [&](auto batch, int64_t b) {
    const auto* image = batch.read(x, size, b, norm);
    float *image_w = of_image(w, b, size.C), *image_mean = of_image(channel_mean, b, size.C);
    float* image_max = of_image(channel_max, b, size.C);
    int64_t known = 0;
    for (int64_t c0 = 0; c0 < size.C; c0 += block) {
      const int64_t c1 = std::min(size.C, c0 + block), needed = std::min(size.C, c1 + reach);
      if (known < needed) batch.channel_statistics(image, size, known, needed, image_mean, image_max);
      known = std::max(known, needed);
      channel_weights(gate, image_mean, image_max, size.C, c0, c1, image_w);
      if (positions)
        batch.position_statistics(image, size, weighted ? image_w : nullptr, taps.data(), c0, c1,
                                  of_image(mean, b, size.positions()), of_image(max, b, size.positions()),
                                  of_image(neighbors, b, size.coarse_H() * size.coarse_W()), batch.soon(x, map, b + 1));
    }
  });
}

}  // namespace csham::CPU_CAPABILITY

#else
#include "operator.h"

namespace csham {
namespace {

ChannelGate channel_gate(Operands& small, const Tensor& avg_weight, const Tensor& avg_bias, const Tensor& max_weight,
                         const Tensor& max_bias, const Tensor& fuse_weight, const Tensor& fuse_bias, bool relu) {
  const int64_t k = avg_weight.numel();
  return {small(avg_weight, k),      small(avg_bias, 1),  small(max_weight, k), small(max_bias, 1),
          small(fuse_weight, 2 * k), small(fuse_bias, 1), k,                    relu};
}

auto hybrid_pool(const Tensor& x, const Optional& affine, const Tensor& avg_weight, const Tensor& avg_bias,
                 const Tensor& max_weight, const Tensor& max_bias, const Tensor& fuse_weight, const Tensor& fuse_bias,
                 bool relu, bool positions, bool weighted, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  const ChannelGate gate =
      channel_gate(small, avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias, relu);
  Tensor w = empty({n.B, n.C}), channel_mean = empty({n.B, n.C}), channel_max = empty({n.B, n.C});
  Tensor mean = positions ? empty({n.B, 1, n.H, n.W}) : none(), max = empty_like(mean);
  Tensor neighbors = neighbor_weight ? empty({n.B, 1, n.h, n.w}) : none();
  CSHAM_BEST(hybrid_pool)(map, data(x), small(affine, 2 * n.C), gate, positions, weighted,
                          small(neighbor_weight, 9 * n.C), floats(w), floats(channel_mean), floats(channel_max),
                          floats(mean), floats(max), floats(neighbors));
  return std::tuple_cat(std::make_tuple(std::move(w), std::move(channel_mean), std::move(channel_max), std::move(mean),
                                        std::move(max), std::move(neighbors)),
                        carry(x));
}

std::tuple<Tensor, Tensor, Tensor> hybrid_pool_backward(
    const Optional& dz, const Tensor& x, const Optional& affine, const Optional& w, const Optional& s,
    const Tensor& avg_weight, const Tensor& avg_bias, const Tensor& max_weight, const Tensor& max_bias, const Tensor& fuse_weight,
    const Tensor& fuse_bias, bool relu, bool weighted, const Tensor& channel_w, const Tensor& channel_mean,
    const Tensor& channel_max, const Optional& dchannel_w, const Optional& dmean, const Optional& dmax,
    const Optional& max, const Optional& ties, const Optional& dneighbors, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  const ChannelGate gate =
      channel_gate(small, avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias, relu);
  Tensor dx = empty_like(x), dgate = empty({gate.parameters()});
  Tensor dfilters = neighbor_weight ? empty(neighbor_weight->sizes()) : none();
  PoolBackward p = pool_backward_of(small, dz, x, affine, w, s, dx);
  p.wp = max && weighted ? small(channel_w, n.channels()) : nullptr;
  set_positions(small, p, n, dmean, dmax, max, ties, dneighbors, neighbor_weight);
  p.channel_max = small(channel_max, n.channels()), p.channel_mean = small(channel_mean, n.channels());
  p.gate = &gate, p.dchannel_w = small(dchannel_w, n.channels());
  p.dfilters = floats(dfilters), p.dgate = floats(dgate);
  CSHAM_BEST(pool_backward)(map, p);
  return {std::move(dx), std::move(dgate), std::move(dfilters)};
}

CSHAM_OPERATOR(hybrid_pool);
CSHAM_OPERATOR(hybrid_pool_backward);

}  // namespace
}  // namespace csham
#endif
