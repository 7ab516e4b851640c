// The kernels over a batch: which pass runs over which image when. Compiled once for each instruction set.
//
// Images are shared out among the threads. Two passes over one image follow each other, so that the second finds it in
// the cache. What is summed over images (gradients of filters) is kept apart for fixed groups of images and added up in
// their order, so that the result does not depend on the number of threads.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "channel_gate.h"
#include "channels_last.h"
#include "contiguous.h"
#include "kernels.h"
#include "parallel.h"
#include "spatial_gate.h"
#include "vectors.h"

namespace csham {
namespace CPU_CAPABILITY {
namespace {

using pixels::ChannelsLast;

// Outputs of at least this size will not be found in the cache by who reads them: write past it.
constexpr int64_t kStreamBytes = 8 << 20;
// Channels of one image that are read twice in a row should stay in the second-level cache.
constexpr int64_t kBlockBytes = 128 << 10;
// Values below which a second thread costs more than it brings.
constexpr int64_t kGrainValues = 1 << 15;
constexpr int64_t kGroups = 32;

template <typename T>
const T* at(const T* batch, int64_t b, int64_t stride) {
  return batch == nullptr ? nullptr : batch + b * stride;
}

template <typename T>
T* at(T* batch, int64_t b, int64_t stride) {
  return batch == nullptr ? nullptr : batch + b * stride;
}

template <typename F>
void for_each_image(const Map& map, const F& run) {
  const int64_t grain = std::max<int64_t>(1, kGrainValues / std::max<int64_t>(1, map.size.values()));
  parallel_for(0, map.B, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) run(b);
  });
}

// out[i] = sum over parts of parts[part][i]
void sum_parts(const std::vector<float>& parts, int64_t count, int64_t length, float* out) {
  std::fill_n(out, length, 0.f);
  for (int64_t part = 0; part < count; ++part)
    for (int64_t i = 0; i < length; ++i) out[i] += parts[part * length + i];
}

// (C, 3, 3) to (3, 3, C)
std::vector<float> taps_first(const float* filters, int64_t C) {
  std::vector<float> turned(9 * C);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t tap = 0; tap < 9; ++tap) turned[tap * C + c] = filters[c * 9 + tap];
  return turned;
}

template <typename T, template <typename> class Layout>
struct Batch {
  using Image = Layout<T>;
  static constexpr bool kChannelsLast = std::is_same_v<Image, ChannelsLast<T>>;

  static bool past_cache(const Map& map) {
    return map.B * map.size.values() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  }

  // Filters of the neighbour term as the layout wants them.
  struct Filters {
    Filters(const float* filters, int64_t C) : data(filters) {
      if (kChannelsLast && filters != nullptr) {
        turned = taps_first(filters, C);
        data = turned.data();
      }
    }
    std::vector<float> turned;
    const float* data;
  };

  static void channel_pool(const Map& map, const void* x, float* mean, float* max) {
    const Size size = map.size;
    for_each_image(map, [&](int64_t b) {
      const T* image = at(static_cast<const T*>(x), b, size.values());
      Image::channel_statistics(image, size, 0, size.C, at(mean, b, size.C), at(max, b, size.C));
    });
  }

  static void position_pool(const Map& map, const void* x, const float* w, const float* filters, float* mean,
                            float* max, float* neighbors) {
    const Size size = map.size;
    const Filters taps(filters, size.C);
    for_each_image(map, [&](int64_t b) {
      Image::position_statistics(at(static_cast<const T*>(x), b, size.values()), size, at(w, b, size.C), taps.data, 0,
                                 size.C, at(mean, b, size.positions()), at(max, b, size.positions()),
                                 at(neighbors, b, size.coarse_H() * size.coarse_W()));
    });
  }

  static void hybrid_pool(const Map& map, const void* x, const ChannelGate& gate, bool positions, bool weighted,
                          const float* filters, float* w, float* channel_mean, float* channel_max, float* mean,
                          float* max, float* neighbors) {
    const Size size = map.size;
    const Filters taps(filters, size.C);
    // A channel's weight needs the statistics of the channels around it only.
    const int64_t plane = size.positions() * static_cast<int64_t>(sizeof(T));
    const int64_t block = kChannelsLast || !positions ? size.C : std::max<int64_t>(8, kBlockBytes / plane / 8 * 8);
    const int64_t reach = 2 * (gate.kernel_size / 2);
    for_each_image(map, [&](int64_t b) {
      const T* image = at(static_cast<const T*>(x), b, size.values());
      float *image_w = at(w, b, size.C), *image_mean = at(channel_mean, b, size.C);
      float* image_max = at(channel_max, b, size.C);
      int64_t known = 0;
      for (int64_t c0 = 0; c0 < size.C; c0 += block) {
        const int64_t c1 = std::min(size.C, c0 + block), needed = std::min(size.C, c1 + reach);
        if (known < needed) Image::channel_statistics(image, size, known, needed, image_mean, image_max);
        known = std::max(known, needed);
        channel_weights(gate, image_mean, image_max, size.C, c0, c1, image_w);
        if (positions)
          Image::position_statistics(image, size, weighted ? image_w : nullptr, taps.data, c0, c1,
                                     at(mean, b, size.positions()), at(max, b, size.positions()),
                                     at(neighbors, b, size.coarse_H() * size.coarse_W()));
      }
    });
  }

  static void scale(const Map& map, const void* x, const float* w, const float* s, const void* shortcut, bool relu,
                    void* y) {
    const Size size = map.size;
    const bool stream = past_cache(map);
    for_each_image(map, [&](int64_t b) {
      const int64_t offset = size.values();
      Image::scale(at(static_cast<const T*>(x), b, offset), size, at(w, b, size.C), at(s, b, size.positions()),
                   at(static_cast<const T*>(shortcut), b, offset), relu, at(static_cast<T*>(y), b, offset), stream);
    });
  }

  static void scale_backward(const Map& map, const void* dy, const void* x, const float* w, const float* s,
                             const float* wp, const float* position_max, const void* y, void* dz, float* dw, float* ds,
                             float* ties) {
    const Size size = map.size;
    const int64_t C = size.C, P = size.positions(), offset = size.values();
    for_each_image(map, [&](int64_t b) {
      Image::scale_backward(at(static_cast<const T*>(dy), b, offset), at(static_cast<const T*>(x), b, offset), size,
                            at(w, b, C), at(s, b, P), at(wp, b, C), at(position_max, b, P),
                            at(static_cast<const T*>(y), b, offset), at(static_cast<T*>(dz), b, offset), at(dw, b, C),
                            at(ds, b, P), at(ties, b, P));
    });
  }

  // What one image's backward pass needs beside its gradients.
  struct Scratch {
    std::vector<float> dmean, dmax, dw, dchannel_mean, dchannel_max, ties;
  };

  static void pool_backward(const Map& map, const PoolBackward& p) {
    const Size size = map.size;
    const Filters taps(p.filters, size.C);
    const int64_t groups = std::min(kGroups, map.B), parameters = p.gate == nullptr ? 0 : p.gate->parameters();
    const int64_t length = p.dfilters == nullptr ? 0 : 9 * size.C;
    std::vector<float> dfilters(groups * length, 0.f), dgate(map.B * parameters);
    const bool stream = past_cache(map);
    parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group)
        for (int64_t b = group * map.B / groups; b < (group + 1) * map.B / groups; ++b)
          image_backward(p, size, b, taps.data, length == 0 ? nullptr : dfilters.data() + group * length,
                         dgate.data() + b * parameters, stream);
    });
    if (p.dgate != nullptr) sum_parts(dgate, map.B, parameters, p.dgate);
    if (p.dfilters != nullptr) {
      std::vector<float> total(length);
      sum_parts(dfilters, groups, length, kChannelsLast ? total.data() : p.dfilters);
      for (int64_t c = 0; kChannelsLast && c < size.C; ++c)
        for (int64_t tap = 0; tap < 9; ++tap) p.dfilters[c * 9 + tap] = total[tap * size.C + c];
    }
  }

  static void image_backward(const PoolBackward& p, Size size, int64_t b, const float* taps, float* dfilters,
                             float* dgate, bool stream) {
    static thread_local Scratch scratch;
    const int64_t C = size.C, P = size.positions(), offset = size.values();
    const T* x = at(static_cast<const T*>(p.x), b, offset);
    const float *wp = at(p.wp, b, C), *position_max = at(p.position_max, b, P), *channel_max = at(p.channel_max, b, C);
    const float* dneighbors = at(p.dneighbors, b, size.coarse_H() * size.coarse_W());
    if (position_max != nullptr) share_position_gradients(p, size, b, scratch);
    scratch.dw.resize(C);
    scratch.ties.resize(C);
    float* dw = wp == nullptr ? nullptr : scratch.dw.data();
    if (dw != nullptr || dfilters != nullptr || channel_max != nullptr)
      Image::statistics_gradient(x, size, wp, scratch.dmean.data(), scratch.dmax.data(), position_max, dneighbors, taps,
                                 channel_max, dw, dfilters, channel_max == nullptr ? nullptr : scratch.ties.data());
    if (p.dwp != nullptr) std::copy_n(dw, C, p.dwp + b * C);
    const bool channels = share_channel_gradients(p, size, b, dw, dgate, scratch);
    Image::input_gradient(at(static_cast<const T*>(p.dz), b, offset), x, size, at(p.w, b, C), at(p.s, b, P), wp,
                          scratch.dmean.data(), scratch.dmax.data(), position_max, dneighbors, taps,
                          channels ? scratch.dchannel_mean.data() : nullptr, scratch.dchannel_max.data(), channel_max,
                          at(static_cast<T*>(p.dx), b, offset), stream);
  }

  // A mean's gradient goes to each of its terms, a maximum's to those that are equal.
  static void share_position_gradients(const PoolBackward& p, Size size, int64_t b, Scratch& scratch) {
    const int64_t P = size.positions();
    scratch.dmean.resize(P);
    scratch.dmax.resize(P);
    for (int64_t i = 0; i < P; ++i) {
      scratch.dmean[i] = p.dmean[b * P + i] / static_cast<float>(size.C);
      // No ties are counted where the maximum is not a number.
      scratch.dmax[i] = p.dmax[b * P + i] / std::max(1.f, p.ties[b * P + i]);
    }
  }

  static bool share_channel_gradients(const PoolBackward& p, Size size, int64_t b, const float* dw, float* dgate,
                                      Scratch& scratch) {
    const int64_t C = size.C;
    scratch.dchannel_mean.assign(C, 0.f);
    scratch.dchannel_max.assign(C, 0.f);
    if (p.gate != nullptr) {
      std::vector<float>& total = scratch.dw;
      if (dw == nullptr) total.assign(C, 0.f);
      for (int64_t c = 0; p.dchannel_w != nullptr && c < C; ++c) total[c] += p.dchannel_w[b * C + c];
      channel_weights_backward(*p.gate, p.channel_mean + b * C, p.channel_max + b * C, C, total.data(),
                               scratch.dchannel_mean.data(), scratch.dchannel_max.data(), dgate);
    } else if (p.dchannel_mean != nullptr) {
      std::copy_n(p.dchannel_mean + b * C, C, scratch.dchannel_mean.data());
      if (p.dchannel_max != nullptr) std::copy_n(p.dchannel_max + b * C, C, scratch.dchannel_max.data());
    } else {
      return false;
    }
    for (int64_t c = 0; c < C; ++c) {
      scratch.dchannel_mean[c] /= static_cast<float>(size.positions());
      if (p.channel_max != nullptr) scratch.dchannel_max[c] /= scratch.ties[c];
    }
    return true;
  }
};

// Calls f with the batch of the right type and layout.
template <typename F>
void dispatch(const Map& map, const F& f) {
  if (map.bfloat16)
    map.channels_last ? f(Batch<BFloat16, ChannelsLast>()) : f(Batch<BFloat16, Contiguous>());
  else
    map.channels_last ? f(Batch<float, ChannelsLast>()) : f(Batch<float, Contiguous>());
}

void channel_pool(const Map& map, const void* x, float* mean, float* max) {
  dispatch(map, [&](auto batch) { batch.channel_pool(map, x, mean, max); });
}

void position_pool(const Map& map, const void* x, const float* w, const float* filters, float* mean, float* max,
                   float* neighbors) {
  dispatch(map, [&](auto batch) { batch.position_pool(map, x, w, filters, mean, max, neighbors); });
}

void hybrid_pool(const Map& map, const void* x, const ChannelGate& gate, bool positions, bool weighted,
                 const float* filters, float* w, float* channel_mean, float* channel_max, float* mean, float* max,
                 float* neighbors) {
  dispatch(map, [&](auto batch) {
    batch.hybrid_pool(map, x, gate, positions, weighted, filters, w, channel_mean, channel_max, mean, max, neighbors);
  });
}

void pool_backward(const Map& map, const PoolBackward& p) {
  dispatch(map, [&](auto batch) { batch.pool_backward(map, p); });
}

void scale(const Map& map, const void* x, const float* w, const float* s, const void* shortcut, bool relu, void* y) {
  dispatch(map, [&](auto batch) { batch.scale(map, x, w, s, shortcut, relu, y); });
}

void scale_backward(const Map& map, const void* dy, const void* x, const float* w, const float* s, const float* wp,
                    const float* position_max, const void* y, void* dz, float* dw, float* ds, float* ties) {
  dispatch(map, [&](auto batch) {
    batch.scale_backward(map, dy, x, w, s, wp, position_max, y, dz, dw, ds, ties);
  });
}

}  // namespace

const Kernels kernels = {channel_pool, position_pool,  hybrid_pool,  pool_backward,
                         scale,        scale_backward, spatial_gate, spatial_gate_backward};

}  // namespace CPU_CAPABILITY
}  // namespace csham
