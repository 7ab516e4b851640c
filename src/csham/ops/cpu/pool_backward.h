// The gradient of x from all that was made of it, which the operators that pool have in common.
#pragma once

#include "kernel.h"

#if !defined(CPU_CAPABILITY)
#include "operator.h"
#endif

namespace csham {

// The three convolutions of the channel step, along the channels with zero padding k / 2.
//   a' = act(avg * a + b)   m' = act(max * m + b)   w = sigmoid(act(fuse * [a'; m'] + b))
struct ChannelGate {
  const float *avg_weight, *avg_bias, *max_weight, *max_bias, *fuse_weight, *fuse_bias;
  int64_t kernel_size;
  bool relu;
  // Weights and biases in the order above.
  int64_t parameters() const { return 4 * kernel_size + 3; }
};

// The gradient of x from all that was made of it: the scaling, the statistics of the positions, those of the channels.
struct PoolBackward {
  const void *dz, *x;
  const float *affine, *w, *s;
  // Statistics over the channels of wp * x; position_max null if there were none. filters (C, 3, 3).
  const float *wp, *dmean, *dmax, *position_max, *ties, *dneighbors, *filters;
  // Statistics over the positions: their gradients, or the gate that was made of them.
  const float *dchannel_mean, *dchannel_max, *channel_max;
  const ChannelGate* gate;
  const float *channel_mean, *dchannel_w;
  void* dx;
  float *dwp, *dfilters, *dgate;
};

CSHAM_KERNEL(void pool_backward(const Map&, const PoolBackward&))

#if !defined(CPU_CAPABILITY)
// With what every operator that pools is given: the scaling of x, and room for dx.
inline PoolBackward pool_backward_of(Operands& small, const Optional& dz, const Tensor& x,
                                     const Optional& affine, const Optional& w, const Optional& s, Tensor& dx) {
  const Sizes n(x);
  PoolBackward p{};
  p.dz = small.like(x, dz), p.x = data(x);
  p.affine = small(affine, 2 * n.C);
  p.w = small(w, n.channels()), p.s = small(s, n.positions());
  p.dx = dx.data();
  return p;
}

// What those say that pool over the channels.
inline void set_positions(Operands& small, PoolBackward& p, const Sizes& n, const auto& dmean, const auto& dmax,
                          const auto& max, const auto& ties, const Optional& dneighbors, const Optional& neighbor_weight) {
  p.dmean = small(dmean, n.positions()), p.dmax = small(dmax, n.positions());
  p.position_max = small(max, n.positions()), p.ties = small(ties, n.positions());
  p.dneighbors = small(dneighbors, n.neighbors()), p.filters = small(neighbor_weight, 9 * n.C);
}

#endif

}  // namespace csham
