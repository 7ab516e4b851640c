// A map that is given as a batch norm's input (csham/ops/operators/normed.py): x = scale[c] u + shift[c], rounded to the
// type of u.
//
// It is made image by image where the passes over it find it in the cache, and always here, so that all of them see the
// same values: a maximum is found again by comparing.
#pragma once

#include "blocks.h"
#include "kernel.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace csham {
namespace CPU_CAPABILITY {

class Normed {
 public:
  // The map itself.
  Normed() = default;

  // affine: C scales, then C shifts; null for the map itself.
  Normed(const float* affine, const Map& map) : exists_(affine != nullptr), channels_last_(map.channels_last) {
    if (!exists_) return;
    const int64_t C = map.size.C;
    // In channels_last as many positions as fill whole blocks, in the order of their lanes.
    period_ = channels_last_ ? std::lcm(C, pixels::kBlock) : C;
    for (int k = 0; k < 2; ++k) {
      values_[k].resize(period_);
      for (int64_t i = 0; i < period_; ++i) {
        values_[k][i] = pixels::plain_nan(affine[k * C + (channels_last_ ? channel_of(i, map.bfloat16) : i) % C]);
      }
    }
  }

  explicit operator bool() const { return exists_; }

  // The image that u becomes, which may be u itself.
  template <typename T>
  void operator()(const T* u, const Size& size, T* x) const {
    channels_last_ ? by_period(u, size.values(), x) : by_plane(u, size, x);
  }

 private:
  // The place within its block of what a lane holds.
  static int64_t channel_of(int64_t lane, bool bfloat16) {
    if (!bfloat16) return lane;
    const int64_t within = lane % pixels::kBlock;
    return lane - within + within % kWidth * 2 + within / kWidth;
  }

  template <typename T>
  void by_plane(const T* u, const Size& size, T* x) const {
    const int64_t P = size.positions();
    for (int64_t c = 0; c < size.C; ++c, u += P, x += P) {
      const Vec scale(values_[0][c]), shift(values_[1][c]);
      const auto made = [&](const Vec& value) { return at::vec::fmadd(value, scale, shift); };
      int64_t p = 0;
      for (; p + 2 * kWidth <= P; p += 2 * kWidth) store2(x + p, made(load(u + p)), made(load(u + p + kWidth)));
      for (; p < P; p += kWidth) {
        const int64_t count = std::min(kWidth, P - p);
        store(x + p, made(count < kWidth ? load(u + p, count) : load(u + p)), count);
      }
    }
  }

  template <typename T>
  void by_period(const T* u, int64_t values, T* x) const {
    const float *scale = values_[0].data(), *shift = values_[1].data();
    const auto made = [&](const T* from, int64_t i) __attribute__((always_inline)) {
      return fmadd(pixels::load_block(from), pixels::load_block(scale + i), pixels::load_block(shift + i));
    };
    for (; values >= period_; values -= period_, u += period_, x += period_) {
      for (int64_t i = 0; i < period_; i += pixels::kBlock) pixels::store_block(x + i, made(u + i, i));
    }
    for (int64_t i = 0; i < values; i += pixels::kBlock) {
      const int64_t count = std::min(pixels::kBlock, values - i);
      T block[pixels::kBlock] = {};
      std::copy_n(u + i, count, block);
      pixels::store_block(block, made(block, i));
      std::copy_n(block, count, x + i);
    }
  }

  bool exists_ = false, channels_last_ = false;
  int64_t period_ = 0;
  std::vector<float> values_[2];
};

}  // namespace CPU_CAPABILITY
}  // namespace csham
