// Statistics over the positions.
#include "pool_backward.h"

namespace csham {
CSHAM_KERNEL(void channel_pool(const Map&, const void* x, const float* affine, float* mean, float* max))
}  // namespace csham

#if defined(CPU_CAPABILITY)
#include "batch.h"

namespace csham::CPU_CAPABILITY {

void channel_pool(const Map& map, const void* x, const float* affine, float* mean, float* max) {
  const Size size = map.size;
  const Normed norm(affine, map);
  for_each_image(map, [&](auto batch, int64_t b) {
    batch.channel_statistics(batch.read(x, size, b, norm), size, 0, size.C, of_image(mean, b, size.C),
                             of_image(max, b, size.C));
  });
}

}  // namespace csham::CPU_CAPABILITY

#else
#include "operator.h"

namespace csham {
namespace {

auto channel_pool(const Tensor& x, const Optional& affine, bool maximum) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor mean = empty({n.B, n.C}), max = maximum ? empty({n.B, n.C}) : none();
  CSHAM_BEST(channel_pool)(map, data(x), small(affine, 2 * n.C), floats(mean), floats(max));
  return std::tuple_cat(std::make_tuple(std::move(mean), std::move(max)), carry(x));
}

Tensor channel_pool_backward(const Optional& dz, const Tensor& x, const Optional& affine, const Optional& w,
                             const Optional& s, const Tensor& dmean, const Optional& dmax, const Optional& max) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor dx = empty_like(x);
  PoolBackward p = pool_backward_of(small, dz, x, affine, w, s, dx);
  p.dchannel_mean = small(dmean, n.channels()), p.dchannel_max = small(dmax, n.channels());
  p.channel_max = small(max, n.channels());
  CSHAM_BEST(pool_backward)(map, p);
  return dx;
}

CSHAM_OPERATOR(channel_pool);
CSHAM_OPERATOR(channel_pool_backward);

}  // namespace
}  // namespace csham
#endif
