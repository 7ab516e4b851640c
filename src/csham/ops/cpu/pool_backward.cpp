// The passes of pool_backward over a batch.
#include "pool_backward.h"

#if defined(CPU_CAPABILITY)
#include "batch.h"
#include "channel_gate.h"

namespace csham::CPU_CAPABILITY {
namespace {

// What one image's backward pass needs beside its gradients.
struct Scratch {
  std::vector<float> dmean, dmax, dw, dchannel_mean, dchannel_max, ties;
};

// A mean's gradient goes to each of its terms, a maximum's to those that are equal.
void share_position_gradients(const PoolBackward& p, Size size, int64_t b, Scratch& scratch) {
  const int64_t P = size.positions();
  scratch.dmean.resize(P);
  scratch.dmax.resize(P);
  for (int64_t i = 0; i < P; ++i) {
    scratch.dmean[i] = p.dmean[b * P + i] / static_cast<float>(size.C);
    // No ties are counted where the maximum is not a number.
    scratch.dmax[i] = p.dmax[b * P + i] / std::max(1.f, p.ties[b * P + i]);
  }
}

bool share_channel_gradients(const PoolBackward& p, Size size, int64_t b, const float* dw, float* dgate,
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

template <typename Batch>
void image_backward(Batch batch, const PoolBackward& p, const Map& map, int64_t b, const Normed& norm, const float* taps,
                    float* dfilters, float* dgate) {
  static thread_local Scratch scratch;
  const Size size = map.size;
  const int64_t C = size.C, P = size.positions();
  const auto* x = batch.read(p.x, size, b, norm);
  const float *wp = of_image(p.wp, b, C), *channel_max = of_image(p.channel_max, b, C);
  const float* position_max = of_image(p.position_max, b, P);
  const float* dneighbors = of_image(p.dneighbors, b, size.coarse_H() * size.coarse_W());
  if (position_max != nullptr) share_position_gradients(p, size, b, scratch);
  scratch.dw.resize(C);
  scratch.ties.resize(C);
  float* dw = wp == nullptr ? nullptr : scratch.dw.data();
  if (dw != nullptr || dfilters != nullptr || channel_max != nullptr)
    batch.statistics_gradient(x, size, wp, scratch.dmean.data(), scratch.dmax.data(), position_max, dneighbors, taps,
                              channel_max, dw, dfilters, channel_max == nullptr ? nullptr : scratch.ties.data(),
                              batch.soon(p.dz, map, b));
  if (p.dwp != nullptr) std::copy_n(dw, C, p.dwp + b * C);
  const bool channels = share_channel_gradients(p, size, b, dw, dgate, scratch);
  batch.input_gradient(batch.template read<1>(p.dz, size, b, Normed()), x, size, of_image(p.w, b, C), of_image(p.s, b, P), wp,
                       scratch.dmean.data(), scratch.dmax.data(), position_max, dneighbors, taps,
                       channels ? scratch.dchannel_mean.data() : nullptr, scratch.dchannel_max.data(), channel_max,
                       batch.target(p.dx, size, b), batch.past_cache(map), batch.soon(p.x, map, b + 1));
  batch.finish(p.dx, size, b);
}

}  // namespace

void pool_backward(const Map& given, const PoolBackward& p) {
  const Map map = p.dneighbors == nullptr || p.filters == nullptr ? given : turned_if_small(given);
  const Size size = map.size;
  const Filters taps(p.filters, map);
  const Normed norm(p.affine, map);
  const int64_t groups = std::min(kGroups, map.B), parameters = p.gate == nullptr ? 0 : p.gate->parameters();
  const int64_t length = p.dfilters == nullptr ? 0 : 9 * size.C;
  std::vector<float> dfilters(groups * length, 0.f), dgate(map.B * parameters);
  dispatch(map, [&](auto batch) {
    parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group)
        for (int64_t b = group * map.B / groups; b < (group + 1) * map.B / groups; ++b)
          image_backward(batch, p, map, b, norm, taps.data(), length == 0 ? nullptr : dfilters.data() + group * length,
                         dgate.data() + b * parameters);
    });
  });
  if (p.dgate != nullptr) sum_parts(dgate, map.B, parameters, p.dgate);
  if (p.dfilters != nullptr) {
    std::vector<float> total(length);
    sum_parts(dfilters, groups, length, map.channels_last ? total.data() : p.dfilters);
    for (int64_t c = 0; map.channels_last && c < size.C; ++c)
      for (int64_t tap = 0; tap < 9; ++tap) p.dfilters[c * 9 + tap] = total[tap * size.C + c];
  }
}

}  // namespace csham::CPU_CAPABILITY
#endif
