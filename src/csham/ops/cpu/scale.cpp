// y = w s x + shortcut, and its ReLU.
#include "kernel.h"

namespace csham {
CSHAM_KERNEL(void scale(const Map&, const void* x, const float* affine, const float* w, const float* s,
                        const void* shortcut, bool relu, void* y))
CSHAM_KERNEL(void scale_backward(const Map&, const void* dy, const void* x, const float* affine, const float* w,
                                 const float* s, const float* wp, const float* position_max, const void* y, void* dz, float* dw,
                                 float* ds, float* ties))
}  // namespace csham

#if defined(CPU_CAPABILITY)
#include "batch.h"

namespace csham::CPU_CAPABILITY {

void scale(const Map& map, const void* x, const float* affine, const float* w, const float* s, const void* shortcut,
           bool relu, void* y) {
  const Size size = map.size;
  const Normed norm(affine, map);
  for_each_image(map, [&](auto batch, int64_t b) {
    batch.scale(batch.read(x, size, b, norm), size, of_image(w, b, size.C), of_image(s, b, size.positions()),
                batch.map(shortcut, size, b), relu, batch.map(y, size, b), batch.past_cache(map));
  });
}

void scale_backward(const Map& map, const void* dy, const void* x, const float* affine, const float* w, const float* s,
                    const float* wp, const float* position_max, const void* y, void* dz, float* dw, float* ds,
                    float* ties) {
  const Size size = map.size;
  const Normed norm(affine, map);
  const int64_t C = size.C, P = size.positions();
  for_each_image(map, [&](auto batch, int64_t b) {
    batch.scale_backward(batch.map(dy, size, b), batch.read(x, size, b, norm), size, of_image(w, b, C), of_image(s, b, P),
                         of_image(wp, b, C), of_image(position_max, b, P), batch.map(y, size, b),
                         batch.map(dz, size, b), of_image(dw, b, C), of_image(ds, b, P), of_image(ties, b, P));
  });
}

}  // namespace csham::CPU_CAPABILITY

#else
#include "operator.h"

namespace csham {
namespace {

Tensor scale(const Tensor& x, const Optional& affine, const Optional& w, const Optional& s, const Optional& shortcut,
             bool relu, const Optional& position_w, const Optional& position_max, const Tensor& carry_z,
             const Tensor& carry_w, const Tensor& carry_s, const Tensor& carry_ties) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor y = empty_like(x);
  CSHAM_BEST(scale)(map, data(x), small(affine, 2 * n.C), small(w, n.channels()), small(s, n.positions()),
                    small.like(x, shortcut), relu, y.data());
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scale_backward(const Tensor& dy, const Tensor& x, const Optional& affine,
                                                          const Optional& w, const Optional& s,
                                                          const Optional& position_w,
                                                          const Optional& position_max, const Optional& y) {
  Operands small;
  const Sizes n(x);
  const Map map = map_of(x);
  Tensor dz = y ? empty_like(x) : none(x.type());
  Tensor dw = w ? empty({n.B, n.C}) : none(), ds = s ? empty({n.B, 1, n.H, n.W}) : none();
  Tensor ties = position_max ? empty({n.B, 1, n.H, n.W}) : none();
  CSHAM_BEST(scale_backward)(map, small.like(x, dy), data(x), small(affine, 2 * n.C), small(w, n.channels()),
                             small(s, n.positions()), small(position_w, n.channels()),
                             small(position_max, n.positions()), small.like(x, y), y ? dz.data() : nullptr, floats(dw),
                             floats(ds), floats(ties));
  return {std::move(dz), std::move(dw), std::move(ds), std::move(ties)};
}

CSHAM_OPERATOR(scale);
CSHAM_OPERATOR(scale_backward);

}  // namespace
}  // namespace csham
#endif
