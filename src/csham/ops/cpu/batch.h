// What kernels need to run over a batch: the images, shared out among the threads, in either type and layout.
//
// Two passes over one image follow each other, so that the second finds it in the cache. What is summed over images
// (gradients of filters) is kept apart for fixed groups of images and added up in their order, so that the result does
// not depend on the number of threads.
#pragma once

#include "channels_last.h"
#include "contiguous.h"
#include "kernel.h"
#include "normed.h"
#include "parallel.h"

#include <algorithm>
#include <array>
#include <vector>

namespace csham {
namespace CPU_CAPABILITY {

// Outputs of at least this size will not be found in the cache by who reads them: write past it.
constexpr int64_t kStreamBytes = 8 << 20;
// Images of at most this size are asked for while the one before is at work.
constexpr int64_t kSoonBytes = 256 << 10;
// Values below which a second thread costs more than it brings.
constexpr int64_t kGrainValues = 1 << 15;

// Room for an image of this thread, which lasts until it asks for the same again.
template <typename T>
T* image_memory(int which, const Size& size) {
  static thread_local std::array<std::vector<T>, 3> images;
  if (static_cast<int64_t>(images[which].size()) < size.values()) images[which].resize(size.values());
  return images[which].data();
}

// The passes over one image (sample.h) of maps with values of type T, and how such maps lie.
template <typename T, template <typename> class Layout>
struct Batch : Layout<T> {
  // Image b of a map, or null.
  static const T* map(const void* batch, const Size& size, int64_t b) {
    return batch == nullptr ? nullptr : static_cast<const T*>(batch) + b * size.values();
  }
  static T* map(void* batch, const Size& size, int64_t b) {
    return batch == nullptr ? nullptr : static_cast<T*>(batch) + b * size.values();
  }
  // Image b, for a pass to ask for meanwhile that leaves room for it in the second-level cache; else null.
  static const T* soon(const void* batch, const Map& map, int64_t b) {
    const bool fits = map.size.values() * static_cast<int64_t>(sizeof(T)) <= kSoonBytes;
    return fits && b < map.B ? Batch::map(batch, map.size, b) : nullptr;
  }
  static bool past_cache(const Map& map) {
    return map.B * map.size.values() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  }
  // The same image for a pass to read, one of two, after a norm; where to write one; and what to do when it is written.
  template <int kWhich = 0>
  static const T* read(const void* batch, const Size& size, int64_t b, const Normed& norm) {
    const T* image = Batch::map(batch, size, b);
    if (image == nullptr || !norm) return image;
    T* made = image_memory<T>(kWhich, size);
    norm(image, size, made);
    return made;
  }
  static T* target(void* batch, const Size& size, int64_t b) { return Batch::map(batch, size, b); }
  static void finish(void* /*batch*/, const Size& /*size*/, int64_t /*b*/) {}
};

// Contiguous images that are turned to channels_last and back. Planes of few positions are better walked that way where
// the neighbour term pools them: a vector then holds channels, not what there is of a row.
template <typename T>
struct Turned : Batch<T, pixels::ChannelsLast> {
  template <int kWhich = 0>
  static const T* read(const void* batch, const Size& size, int64_t b, const Normed& norm) {
    if (batch == nullptr) return nullptr;
    T* image = image_memory<T>(kWhich, size);
    turn(Turned::map(batch, size, b), size.C, size.positions(), image);
    if (norm) norm(image, size, image);
    return image;
  }
  static T* target(void* /*batch*/, const Size& size, int64_t /*b*/) { return image_memory<T>(2, size); }
  static void finish(void* batch, const Size& size, int64_t b) {
    turn(image_memory<T>(2, size), size.positions(), size.C, Turned::map(batch, size, b));
  }
  static bool past_cache(const Map&) { return false; }

 private:
  static void turn(const T* from, int64_t rows, int64_t columns, T* to) {
    constexpr int64_t kTile = 32;
    for (int64_t i = 0; i < rows; i += kTile) {
      for (int64_t j = 0; j < columns; j += kTile) {
        at::vec::transpose_mxn<T>(from + i * columns + j, columns, to + j * rows + i, rows, std::min(kTile, rows - i),
                                  std::min(kTile, columns - j));
      }
    }
  }
};

// The map as a kernel should take it that pools for the neighbour term. Only with AVX-512 is there something to turn
// bfloat16 with that is quick enough.
inline Map turned_if_small(const Map& map) {
  constexpr int64_t kPositions = 64;
  Map taken = map;
  taken.turned = kWidth == 16 && map.bfloat16 && !map.channels_last && map.size.positions() <= kPositions &&
                 map.size.C >= pixels::kBlock;
  taken.channels_last = map.channels_last || taken.turned;
  return taken;
}

// The same of an array of float32 with a number of values for each image.
template <typename T>
T* of_image(T* batch, int64_t b, int64_t values) {
  return batch == nullptr ? nullptr : batch + b * values;
}

// Calls f with the batch of the right type and layout.
template <typename F>
void dispatch(const Map& map, const F& f) {
  if (map.turned)
    f(Turned<BFloat16>());
  else if (map.bfloat16)
    map.channels_last ? f(Batch<BFloat16, pixels::ChannelsLast>()) : f(Batch<BFloat16, Contiguous>());
  else
    map.channels_last ? f(Batch<float, pixels::ChannelsLast>()) : f(Batch<float, Contiguous>());
}

// Calls f with the same, and the number of each image, side by side.
template <typename F>
void for_each_image(const Map& map, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrainValues / std::max<int64_t>(1, map.size.values()));
  dispatch(map, [&](auto batch) {
    parallel_for(0, map.B, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) f(batch, b);
    });
  });
}

// out[i] = sum over parts of parts[part][i]
inline void sum_parts(const std::vector<float>& parts, int64_t count, int64_t length, float* out) {
  std::fill_n(out, length, 0.f);
  for (int64_t part = 0; part < count; ++part)
    for (int64_t i = 0; i < length; ++i) out[i] += parts[part * length + i];
}

// Filters of the neighbour term as the layout wants them: (C, 3, 3), or (3, 3, C) in channels_last.
class Filters {
 public:
  Filters(const float* filters, const Map& map) : data_(filters) {
    if (!map.channels_last || filters == nullptr) return;
    const int64_t C = map.size.C;
    turned_.resize(9 * C);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t tap = 0; tap < 9; ++tap) turned_[tap * C + c] = filters[c * 9 + tap];
    data_ = turned_.data();
  }
  const float* data() const { return data_; }

 private:
  std::vector<float> turned_;
  const float* data_;
};

}  // namespace CPU_CAPABILITY
}  // namespace csham
