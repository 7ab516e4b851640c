// Variance over the positions.
#include "kernel.h"

namespace csham {
CSHAM_KERNEL(void variance_pool(const Map&, const void* x, float* variance, float* mean))
CSHAM_KERNEL(void variance_pool_backward(const Map&, const void* x, const float* mean, const float* grad, void* dx))
}  // namespace csham

#if defined(CPU_CAPABILITY)
#include "batch.h"

namespace csham::CPU_CAPABILITY {

// f(channel, values of the positions, distance of neighbours) for each channel of an image.
template <typename F>
void for_each_channel(const Map& map, const F& f) {
  const int64_t C = map.size.C, P = map.size.positions();
  for_each_image(map, [&](auto batch, int64_t b) {
    for (int64_t c = 0; c < C; ++c) f(batch, b, b * C + c, c * (map.channels_last ? 1 : P), map.channels_last ? C : 1);
  });
}

void variance_pool(const Map& map, const void* x, float* variance, float* mean) {
  const int64_t P = map.size.positions();
  for_each_channel(map, [&](auto batch, int64_t b, int64_t c, int64_t first, int64_t step) {
    const auto* values = batch.map(x, map.size, b) + first;
    float sum = 0, squares = 0;
    for (int64_t p = 0; p < P; ++p) sum += static_cast<float>(values[p * step]);
    mean[c] = sum / static_cast<float>(P);
    for (int64_t p = 0; p < P; ++p) {
      const float away = static_cast<float>(values[p * step]) - mean[c];
      squares += away * away;
    }
    variance[c] = squares / static_cast<float>(P);
  });
}

void variance_pool_backward(const Map& map, const void* x, const float* mean, const float* grad, void* dx) {
  const int64_t P = map.size.positions();
  for_each_channel(map, [&](auto batch, int64_t b, int64_t c, int64_t first, int64_t step) {
    const auto* values = batch.map(x, map.size, b) + first;
    auto* out = batch.map(dx, map.size, b) + first;
    const float share = 2 * grad[c] / static_cast<float>(P);
    for (int64_t p = 0; p < P; ++p) out[p * step] = share * (static_cast<float>(values[p * step]) - mean[c]);
  });
}

}  // namespace csham::CPU_CAPABILITY

#else
#include "operator.h"

namespace csham {
namespace {

std::tuple<Tensor, Tensor> variance_pool(const Tensor& x) {
  const Sizes n(x);
  Tensor variance = empty({n.B, n.C}), mean = empty({n.B, n.C});
  CSHAM_BEST(variance_pool)(map_of(x), data(x), floats(variance), floats(mean));
  return {std::move(variance), std::move(mean)};
}

Tensor variance_pool_backward(const Tensor& x, const Tensor& mean, const Tensor& grad) {
  Operands small;
  const Sizes n(x);
  Tensor dx = empty_like(x);
  CSHAM_BEST(variance_pool_backward)(map_of(x), data(x), small(mean, n.channels()), small(grad, n.channels()), dx.data());
  return dx;
}

CSHAM_OPERATOR(variance_pool);
CSHAM_OPERATOR(variance_pool_backward);

}  // namespace
}  // namespace csham
#endif
