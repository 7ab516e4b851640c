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

// Batch norm of one channel.
struct Norm {
  const float* weight;  // (1), null for 1
  const float* bias;    // (1), null for 0
  double eps;
  bool training;  // needs more than one value in the batch, as torch's
  float* mean;    // (1)  in training the batch's, written by the forward pass; else the running statistics, read
  float* var;     // (1)  likewise; the batch's is the biased one, sum (x - mean)^2 / count
};

// All maps are contiguous. Any of B, H, W may be 0 where no norm is in training: the parameters' gradients are zeros.
struct SpatialGate {
  int64_t B, H, W;
  int64_t kernel_size;         // odd; 7 is the fast one
  const float* mean;           // (B, H, W)  over the channels
  const float* max;            // (B, H, W)
  const float* weight;         // (2, kernel_size, kernel_size)  for mean, for max
  Norm norm;                   // of position
  bool relu;                   // act is ReLU (gradient 0 at 0), else the identity
  const float* neighbors;      // (B, coarse_H, coarse_W) before its norm, or null: no such term
  int64_t coarse_H, coarse_W;  // at least 1 and at most H, W; 0 without neighbors
  Norm neighbor_norm;          // not read without neighbors
  float* position;             // (B, H, W)  written by the forward pass, read by the backward pass
  float* s;                    // (B, H, W)  likewise

  int64_t positions() const { return H * W; }
  int64_t coarse_positions() const { return neighbors ? coarse_H * coarse_W : 0; }
};

// Null: not wanted, except ds, dmean, dmax and, with neighbors, dneighbors.
struct SpatialGateGradients {
  const float* ds;               // (B, H, W)
  float* dmean;                  // (B, H, W)
  float* dmax;                   // (B, H, W)
  float* dweight;                // (2, kernel_size, kernel_size)
  float* dneighbors;             // (B, coarse_H, coarse_W)
  float* dnorm_weight;           // (1)
  float* dnorm_bias;             // (1)
  float* dneighbor_norm_weight;  // (1)  zero without neighbors
  float* dneighbor_norm_bias;    // (1)  likewise
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
  void (*spatial_gate_backward)(const SpatialGate&, const SpatialGateGradients&);
};

namespace AVX512 { extern const Kernels kernels; }
namespace AVX2 { extern const Kernels kernels; }
namespace DEFAULT { extern const Kernels kernels; }

}  // namespace csham
