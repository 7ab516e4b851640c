// Statistics over the channels of wp * x, and the neighbour term.
#include "pool_backward.h"

namespace csham {
CSHAM_KERNEL(void position_pool(const Map&, const void* x, const float* affine, const float* wp, const float* filters,
                                float* mean, float* max, float* neighbors))
}  // namespace csham

#if defined(CPU_CAPABILITY)
#include "batch.h"

namespace csham::CPU_CAPABILITY {

void position_pool(const Map& given, const void* x, const float* affine, const float* wp, const float* filters,
                   float* mean, float* max, float* neighbors) {
  const Map map = filters == nullptr ? given : turned_if_small(given);
  const Size size = map.size;
  const Filters taps(filters, map);
  const Normed norm(affine, map);
  for_each_image(map, [&](auto batch, int64_t b) {
    batch.position_statistics(batch.read(x, size, b, norm), size, of_image(wp, b, size.C), taps.data(), 0, size.C,
                              of_image(mean, b, size.positions()), of_image(max, b, size.positions()),
                              of_image(neighbors, b, size.coarse_H() * size.coarse_W()), batch.soon(x, map, b + 1));
  });
}

}  // namespace csham::CPU_CAPABILITY

#else
#include "operator.h"

namespace csham {
namespace {

auto position_pool(const Tensor& x, const Optional& affine, const Optional& w, const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor mean = empty({n.B, 1, n.H, n.W}), max = empty({n.B, 1, n.H, n.W});
  Tensor neighbors = neighbor_weight ? empty({n.B, 1, n.h, n.w}) : none();
  CSHAM_BEST(position_pool)(map, data(x), small(affine, 2 * n.C), small(w, n.channels()),
                            small(neighbor_weight, 9 * n.C), floats(mean), floats(max), floats(neighbors));
  return std::tuple_cat(std::make_tuple(std::move(mean), std::move(max), std::move(neighbors)), carry(x));
}

std::tuple<Tensor, Tensor, Tensor> position_pool_backward(
    const Optional& dz, const Tensor& x, const Optional& affine, const Optional& w, const Optional& s,
    const Optional& position_w, const Tensor& dmean, const Tensor& dmax, const Tensor& max, const Tensor& ties, const Optional& dneighbors,
    const Optional& neighbor_weight) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor dx = empty_like(x), dw = position_w ? empty({n.B, n.C}) : none();
  Tensor dfilters = neighbor_weight ? empty(neighbor_weight->sizes()) : none();
  PoolBackward p = pool_backward_of(small, dz, x, affine, w, s, dx);
  p.wp = small(position_w, n.channels());
  set_positions(small, p, n, dmean, dmax, max, ties, dneighbors, neighbor_weight);
  p.dwp = floats(dw), p.dfilters = floats(dfilters);
  CSHAM_BEST(pool_backward)(map, p);
  return {std::move(dx), std::move(dw), std::move(dfilters)};
}

CSHAM_OPERATOR(position_pool);
CSHAM_OPERATOR(position_pool_backward);

}  // namespace
}  // namespace csham
#endif
