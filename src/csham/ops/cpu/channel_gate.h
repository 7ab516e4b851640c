// CSHAM's channel weights of one image, from the statistics of its channels, and their gradients.
//
// forward    a' = act(conv(a)), m' = act(conv(m)), w = sigmoid(act(conv([a'; m'])))
// backward   recomputes a' and m', which are cheaper to compute than to keep
// All arrays (C) float32; a few multiply-adds a channel, so plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool_backward.h"

namespace csham {
namespace CPU_CAPABILITY {

// NaN stays NaN.
inline float activate(float value, bool relu) { return relu && value < 0 ? 0.f : value; }

// sum_j weight[j] * row[c + j - k / 2] over the channels that exist; row points at channel 0 of C.
inline float correlate(const float* weight, int64_t k, const float* row, int64_t c, int64_t C) {
  const int64_t begin = std::max<int64_t>(0, k / 2 - c), end = std::min(k, C + k / 2 - c);
  float total = 0;
  for (int64_t j = begin; j < end; ++j) total += weight[j] * row[c + j - k / 2];
  return total;
}

// The rows a' and m' for channels [c0, c1), each at its own index.
inline void activate_statistics(const ChannelGate& gate, const float* mean, const float* max, int64_t C, int64_t c0,
                                int64_t c1, float* avg_row, float* max_row) {
  for (int64_t c = c0; c < c1; ++c) {
    avg_row[c] = activate(correlate(gate.avg_weight, gate.kernel_size, mean, c, C) + *gate.avg_bias, gate.relu);
    max_row[c] = activate(correlate(gate.max_weight, gate.kernel_size, max, c, C) + *gate.max_bias, gate.relu);
  }
}

inline float channel_logit(const ChannelGate& gate, const float* avg_row, const float* max_row, int64_t c, int64_t C) {
  const int64_t k = gate.kernel_size;
  const float sum = correlate(gate.fuse_weight, k, avg_row, c, C) + correlate(gate.fuse_weight + k, k, max_row, c, C);
  return activate(sum + *gate.fuse_bias, gate.relu);
}

// w[c] for c0 <= c < c1, which needs the statistics of channels up to c1 + 2 * (k / 2).
inline void channel_weights(const ChannelGate& gate, const float* mean, const float* max, int64_t C, int64_t c0,
                            int64_t c1, float* w) {
  static thread_local std::vector<float> rows;
  rows.resize(2 * C);
  float *avg_row = rows.data(), *max_row = avg_row + C;
  const int64_t reach = gate.kernel_size / 2;
  activate_statistics(gate, mean, max, C, std::max<int64_t>(0, c0 - reach), std::min(C, c1 + reach), avg_row, max_row);
  for (int64_t c = c0; c < c1; ++c) w[c] = 1.f / (1.f + std::exp(-channel_logit(gate, avg_row, max_row, c, C)));
}

// Add weight's and input's gradients of one correlation, of which out_grad is the gradient at channel c.
inline void correlate_backward(const float* weight, int64_t k, const float* row, int64_t c, int64_t C, float out_grad,
                               float* dweight, float* drow) {
  const int64_t begin = std::max<int64_t>(0, k / 2 - c), end = std::min(k, C + k / 2 - c);
  for (int64_t j = begin; j < end; ++j) {
    dweight[j] += out_grad * row[c + j - k / 2];
    drow[c + j - k / 2] += out_grad * weight[j];
  }
}

// From dw: dmean and dmax (C), and dgate (gate.parameters()) of this image, all overwritten.
inline void channel_weights_backward(const ChannelGate& gate, const float* mean, const float* max, int64_t C,
                                     const float* dw, float* dmean, float* dmax, float* dgate) {
  static thread_local std::vector<float> scratch;
  scratch.assign(4 * C, 0.f);
  float *avg_row = scratch.data(), *max_row = avg_row + C, *davg_row = max_row + C, *dmax_row = davg_row + C;
  const int64_t k = gate.kernel_size;
  float *davg_weight = dgate, *davg_bias = davg_weight + k, *dmax_weight = davg_bias + 1, *dmax_bias = dmax_weight + k;
  float *dfuse_weight = dmax_bias + 1, *dfuse_bias = dfuse_weight + 2 * k;
  std::fill_n(dgate, gate.parameters(), 0.f);
  std::fill_n(dmean, C, 0.f);
  std::fill_n(dmax, C, 0.f);
  activate_statistics(gate, mean, max, C, 0, C, avg_row, max_row);
  for (int64_t c = 0; c < C; ++c) {
    const float logit = channel_logit(gate, avg_row, max_row, c, C);
    if (gate.relu && logit <= 0) continue;
    // sigmoid(logit) sigmoid(-logit), exact where the weight is nearly one.
    const float dlogit = dw[c] / ((1.f + std::exp(-logit)) * (1.f + std::exp(logit)));
    *dfuse_bias += dlogit;
    correlate_backward(gate.fuse_weight, k, avg_row, c, C, dlogit, dfuse_weight, davg_row);
    correlate_backward(gate.fuse_weight + k, k, max_row, c, C, dlogit, dfuse_weight + k, dmax_row);
  }
  for (int64_t c = 0; c < C; ++c) {
    if (!gate.relu || !(avg_row[c] <= 0)) {
      *davg_bias += davg_row[c];
      correlate_backward(gate.avg_weight, k, mean, c, C, davg_row[c], davg_weight, dmean);
    }
    if (!gate.relu || !(max_row[c] <= 0)) {
      *dmax_bias += dmax_row[c];
      correlate_backward(gate.max_weight, k, max, c, C, dmax_row[c], dmax_weight, dmax);
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace csham
