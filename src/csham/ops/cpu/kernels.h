// What operators.cpp asks of kernels.cpp, which is compiled once for each instruction set.
//
// Arrays as in sample.h, over a batch: statistics and weights of channels (B, C), of positions (B, H * W). Null pointers
// mean what they mean there.
#pragma once

#include "sample.h"

namespace csham {

struct Map {
  int64_t B;
  Size size;
  bool channels_last;
  bool bfloat16;
};

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
  const float *w, *s;
  // Statistics over the channels of wp * x; position_max null if there were none. filters (C, 3, 3).
  const float *wp, *dmean, *dmax, *position_max, *ties, *dneighbors, *filters;
  // Statistics over the positions: their gradients, or the gate that was made of them.
  const float *dchannel_mean, *dchannel_max, *channel_max;
  const ChannelGate* gate;
  const float *channel_mean, *dchannel_w;
  void* dx;
  float *dwp, *dfilters, *dgate;
};

// One batch norm of a single channel: affine parameters (null for 1 and 0) and the statistics to normalise by, which the
// forward pass writes (mean and biased variance of the batch) in training and reads otherwise.
struct Norm {
  const float *weight, *bias;
  float *mean, *var;
  bool training;
  float eps;
};

struct SpatialGate {
  int64_t B, H, W, kernel_size;
  const float *mean, *max, *neighbors, *weight;
  Norm norm, neighbor_norm;
  bool relu;
  float *position, *s;
};

struct SpatialGateBackward {
  const float* ds;
  float *dmean, *dmax, *dneighbors, *dweight;
  // weight and bias of the norm and of the neighbours' norm
  float* dnorms;
};

struct Kernels {
  void (*channel_pool)(const Map&, const void* x, float* mean, float* max);
  void (*position_pool)(const Map&, const void* x, const float* w, const float* filters, float* mean, float* max,
                        float* neighbors);
  void (*hybrid_pool)(const Map&, const void* x, const ChannelGate&, bool positions, bool weighted,
                      const float* filters, float* w, float* channel_mean, float* channel_max, float* mean, float* max,
                      float* neighbors);
  void (*pool_backward)(const Map&, const PoolBackward&);
  void (*scale)(const Map&, const void* x, const float* w, const float* s, const void* shortcut, bool relu, void* y);
  void (*scale_backward)(const Map&, const void* dy, const void* x, const float* w, const float* s, const float* wp,
                         const float* position_max, const void* y, void* dz, float* dw, float* ds, float* ties);
  void (*spatial_gate)(const SpatialGate&);
  void (*spatial_gate_backward)(const SpatialGate&, const SpatialGateBackward&);
};

namespace AVX512 { extern const Kernels kernels; }
namespace AVX2 { extern const Kernels kernels; }
namespace DEFAULT { extern const Kernels kernels; }

}  // namespace csham
