// One image's feature map, and what the two layouts must be able to do with it.
//
// contiguous.h and channels_last.h each define a struct with the static functions listed below for x of float or
// at::BFloat16; the operators' kernels run them over a batch. Small arrays (statistics, weights, gradients of either) are
// contiguous float32 whatever the type of x, and every sum is float32, of large maps in parts. A null pointer for weights
// means weights of one, for a gradient that it is not wanted or is zero.
//
//   x       the map: C planes of H x W values; where a batch norm's input was given with its scale and shift, the
//           image that normed.h has made of it
//   w       (C)  channel weights           s      (H * W)  spatial weights
//   y = relu?(w * s * x + shortcut?)       dz     gradient of what stands before the shortcut, like x
//   wp      (C)  channel weights under which the positions' statistics are taken: those of t = wp * x (one float32
//                product, never rounded to the type of x, so that forward and backward find the same maxima)
//
//   next    what is read when this pass is over, to be asked for meanwhile; null for nothing
//
// channel_statistics(x, size, c0, c1, mean, max)
//     For channels c0 <= c < c1: mean[c] over the positions and, if max is not null, max[c]. Reads x once.
// position_statistics(x, size, wp, filters, c0, c1, mean, max, neighbors, next)
//     Over the channels of t: mean (H * W), max (H * W) and, if filters is not null, neighbors (H/4 * W/4, see below).
//     Called for consecutive ranges of channels of one image: c0 == 0 begins, c1 == C finishes. Reads x once.
// scale(x, size, w, s, shortcut, relu, y, stream)
//     y, rounded once to the type of x. stream: write past the caches. Reads x (and shortcut), writes y.
// scale_backward(dy, x, size, w, s, wp, position_max, y, dz, dw, ds, ties)
//     If y is not null: dz = dy, or 0 where y is 0, is written; else dz is dy and the argument is null.
//     dw[c] = sum_p dz * s * x;  ds[p] = sum_c dz * w * x;  ties[p] = number of c with wp * x == position_max[p].
// statistics_gradient(x, size, wp, dmean, dmax, position_max, dneighbors, filters, channel_max, dwp, dfilters, ties,
//                    next)
//     What needs x before dx can be written. Of the positions' statistics, with dmean already divided by C and dmax by
//     the ties: dwp[c] = sum_p x * (dmean[p] + dmax[p] * [wp[c] * x == position_max[p]] + up(c, p)) with up the
//     neighbour term's gradient with respect to t; dfilters += gradient of the filters, in their layout.
//     ties[c] = number of p with x == channel_max[c].
// input_gradient(dz, x, size, w, s, wp, dmean, dmax, position_max, dneighbors, filters, dchannel_mean, dchannel_max,
//                channel_max, dx, stream, next)
//     dx = w s dz + wp (dmean[p] + dmax[p] [wp x == position_max[p]] + up(c, p))
//        + dchannel_mean[c] + dchannel_max[c] [x == channel_max[c]], where the last two come divided by H * W and by the
//     ties. dz may be null (no first term); position_max null: no term of the positions; channel_max null: no maximum.
//
// neighbors: d = 2 x 2 average pooling of t with stride 2 (an odd last row or column is dropped), then a 3 x 3
// convolution with stride 2 from C channels to one, padded as TensorFlow's SAME: output (ceil(h / 2), ceil(w / 2)) for
// the pooled (h, w); an even side is padded by one at its end only, an odd side by one at both ends.
#pragma once

#include <cstdint>

namespace csham {

struct Size {
  int64_t C, H, W;
  int64_t positions() const { return H * W; }
  int64_t values() const { return C * H * W; }
  // After pooling, and after the convolution.
  int64_t pooled_H() const { return H / 2; }
  int64_t pooled_W() const { return W / 2; }
  int64_t coarse_H() const { return (pooled_H() + 1) / 2; }
  int64_t coarse_W() const { return (pooled_W() + 1) / 2; }
};

}  // namespace csham
