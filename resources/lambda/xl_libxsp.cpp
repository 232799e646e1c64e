/* xl.h on top of libxsp.
 *
 * NEVER COMPILED AGAINST THE VENDOR'S LIBRARY, which is not public: names of classes and methods are those of its
 * documentation and of public drivers, and some will have to be corrected where it is built. README.md says how.
 * XSP_VERSION 1 or 2: what 1.x does not have is answered without it. */
#include "xl.h"

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <libxsp.h>

#ifndef XSP_VERSION
#define XSP_VERSION 2
#endif

namespace lambda = xsp::lambda;

namespace {

thread_local std::string words; /* of the last failure in this thread */

int fail(int code, std::string text)
{
    words = std::move(text);
    return code;
}

int no_name(const char *name) { return fail(XL_NAME, name); }

/* Runs `work`; what it throws becomes a code and words. Nothing leaves the C interface otherwise. */
template <typename Work> int guarded(Work work) noexcept
{
    try {
        return work();
    } catch (const xsp::RuntimeError &error) {
        auto code = static_cast<uint32_t>(error.code()) >> 16;
        return fail(code ? static_cast<int>(code) : XL_UNEXPECTED, error.what());
    } catch (const xsp::ConfigError &error) {
        return fail(XL_CONFIG, error.what());
    } catch (const std::bad_alloc &) {
        return fail(XL_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &error) {
        return fail(XL_UNEXPECTED, error.what());
    } catch (...) {
        return fail(XL_UNEXPECTED, "an exception that says nothing");
    }
}

const char *on_off(bool on) { return on ? "ON" : "OFF"; }

} // namespace

struct xl_handle {
    std::unique_ptr<xsp::System> system;
    std::shared_ptr<lambda::Detector> detector;
    std::vector<std::shared_ptr<lambda::Receiver>> receivers;
    std::vector<std::string> names;
    double beam_energy = 0; /* only xspd keeps one */
    lambda::OperationMode mode;

    bool has(int module) const { return module >= 0 && module < static_cast<int>(receivers.size()); }
    int vendor(int module) const { return module + 1; } /* libxsp counts from 1 */
};

namespace {

/* --- values of the detector -------------------------------------------------------------------------------------- */

using Ints = std::map<std::string, std::function<int64_t(xl_handle &)>>;
using SetInts = std::map<std::string, std::function<void(xl_handle &, int64_t)>>;

const std::map<int, lambda::BitDepth> DEPTHS = {
    {1, lambda::BitDepth::DEPTH_1}, {6, lambda::BitDepth::DEPTH_6},
    {12, lambda::BitDepth::DEPTH_12}, {24, lambda::BitDepth::DEPTH_24},
};

int64_t depth_of(lambda::BitDepth depth)
{
    for (const auto &[bits, found] : DEPTHS)
        if (found == depth)
            return bits;
    return 0;
}

void set_mode(xl_handle &h, const std::function<void(lambda::OperationMode &)> &change)
{
    auto mode = h.mode;
    change(mode);
    h.detector->setOperationMode(mode);
    h.mode = mode;
}

const Ints INTS = {
    {"n_modules", [](xl_handle &h) { return static_cast<int64_t>(h.receivers.size()); }},
    {"n_frames", [](xl_handle &h) { return static_cast<int64_t>(h.detector->frameCount()); }},
    {"frames_per_trigger", [](xl_handle &h) { return static_cast<int64_t>(h.detector->framesPerTrigger()); }},
    {"bit_depth", [](xl_handle &h) { return depth_of(h.mode.bit_depth); }},
    {"roi_rows", [](xl_handle &h) { return static_cast<int64_t>(h.detector->roiRows()); }},
};

const SetInts SET_INTS = {
    {"n_frames", [](xl_handle &h, int64_t n) { h.detector->setFrameCount(n); }},
    {"frames_per_trigger", [](xl_handle &h, int64_t n) { h.detector->setFramesPerTrigger(n); }},
    {"bit_depth", [](xl_handle &h, int64_t n) { set_mode(h, [n](auto &m) { m.bit_depth = DEPTHS.at(static_cast<int>(n)); }); }},
    {"roi_rows", [](xl_handle &h, int64_t n) { h.detector->setRoiRows(n); }},
};

std::string trigger_mode(xl_handle &h)
{
    switch (h.detector->triggerMode()) {
    case lambda::TrigMode::EXT_SEQUENCE: return "EXT_SEQUENCE";
    case lambda::TrigMode::EXT_FRAMES: return "EXT_FRAMES";
    default: return "SOFTWARE";
    }
}

const std::map<std::string, std::function<std::string(xl_handle &)>> TEXTS = {
    {"type", [](xl_handle &) { return std::string("Lambda"); }},
    {"version", [](xl_handle &) { return std::string(xsp::libraryVersion()); }},
    {"trigger_mode", trigger_mode},
    {"counter_mode", [](xl_handle &h) { return std::string(h.mode.counter_mode == lambda::CounterMode::DUAL ? "DUAL" : "SINGLE"); }},
    {"charge_summing", [](xl_handle &h) { return std::string(on_off(h.mode.charge_summing == lambda::ChargeSumming::ON)); }},
    {"gating_mode", [](xl_handle &h) { return std::string(on_off(h.detector->gatingMode() == lambda::GatingMode::ON)); }},
    {"interpolation", [](xl_handle &h) { return std::string(on_off(h.detector->interpolationEnabled())); }},
    {"saturation_flag", [](xl_handle &h) { return std::string(on_off(h.detector->saturationFlagEnabled())); }},
    {"countrate_correction", [](xl_handle &h) { return std::string(on_off(h.detector->countrateCorrectionEnabled())); }},
    {"flatfield_correction", [](xl_handle &h) { return std::string(on_off(h.detector->flatfieldEnabled())); }},
};

using Switch = std::pair<std::function<void(xl_handle &)>, std::function<void(xl_handle &)>>; /* on, off */

const std::map<std::string, Switch> SWITCHES = {
    {"charge_summing",
     {[](xl_handle &h) { set_mode(h, [](auto &m) { m.charge_summing = lambda::ChargeSumming::ON; }); },
      [](xl_handle &h) { set_mode(h, [](auto &m) { m.charge_summing = lambda::ChargeSumming::OFF; }); }}},
    {"gating_mode",
     {[](xl_handle &h) { h.detector->setGatingMode(lambda::GatingMode::ON); },
      [](xl_handle &h) { h.detector->setGatingMode(lambda::GatingMode::OFF); }}},
    {"interpolation",
     {[](xl_handle &h) { h.detector->enableInterpolation(); }, [](xl_handle &h) { h.detector->disableInterpolation(); }}},
    {"saturation_flag",
     {[](xl_handle &h) { h.detector->enableSaturationFlag(); }, [](xl_handle &h) { h.detector->disableSaturationFlag(); }}},
    {"countrate_correction",
     {[](xl_handle &h) { h.detector->enableCountrateCorrection(); },
      [](xl_handle &h) { h.detector->disableCountrateCorrection(); }}},
    {"flatfield_correction",
     {[](xl_handle &h) { h.detector->enableFlatfield(); }, [](xl_handle &h) { h.detector->disableFlatfield(); }}},
};

/* --- values of a module ------------------------------------------------------------------------------------------ */

int64_t features(xl_handle &h, int module)
{
    int64_t found = 0;
    for (auto [flag, bit] : {std::pair{lambda::Feature::FEAT_HV, 1}, {lambda::Feature::FEAT_1_6_BIT, 2},
                             {lambda::Feature::FEAT_MEDIPIX_DAC_IO, 4}, {lambda::Feature::FEAT_EXTENDED_GATING, 8}})
        found |= h.detector->hasFeature(h.vendor(module), flag) ? bit : 0;
    return found;
}

int module_int(xl_handle &h, int module, const std::string &name, int64_t &value)
{
    auto &receiver = *h.receivers[module];
    if (name == "frame_width")
        value = receiver.frameWidth();
    else if (name == "frame_height")
        value = receiver.frameHeight();
    else if (name == "frame_depth")
        value = receiver.frameDepth();
    else if (name == "frames_queued")
        value = receiver.framesQueued();
    else if (name == "features")
        value = features(h, module);
#if XSP_VERSION >= 2
    else if (name == "max_frames")
        value = receiver.maxFrames();
#endif
    else
        return no_name(name.c_str());
    return XL_OK;
}

int module_double(xl_handle &h, int module, const std::string &name, double &value)
{
    auto &receiver = *h.receivers[module];
    auto &detector = *h.detector;
    if (name == "voltage")
        value = detector.voltage(h.vendor(module));
    else if (name == "humidity")
        value = detector.humidity(h.vendor(module));
    else if (name == "sensor_current")
        value = detector.sensorCurrent(h.vendor(module));
    else if (name == "saturation_threshold")
        value = detector.saturationThreshold(h.vendor(module));
    else if (name == "position_x")
        value = receiver.position().x;
    else if (name == "position_y")
        value = receiver.position().y;
    else if (name == "rotation")
        value = receiver.rotation().alpha;
    else
        return no_name(name.c_str());
    return XL_OK;
}

std::string joined(const std::vector<std::string> &list)
{
    std::string all;
    for (const auto &one : list)
        all += (all.empty() ? "" : ",") + one;
    return all;
}

template <typename Value> int copy_out(const Value *found, size_t n, Value *values, size_t size, size_t *count)
{
    *count = n;
    if (n > size)
        return fail(XL_SPACE, std::to_string(n) + " values");
    if (n)
        std::memcpy(values, found, n * sizeof *found);
    return XL_OK;
}

} // namespace

/* --- the interface --------------------------------------------------------------------------------------------------- */

extern "C" {

uint32_t xl_abi(void) { return XL_ABI; }

size_t xl_error(xl_handle *, char *text, size_t size)
{
    if (size) {
        std::strncpy(text, words.c_str(), size - 1);
        text[size - 1] = 0;
    }
    return words.size();
}

int xl_open(const char *config, xl_handle **handle)
{
    *handle = nullptr;
    return guarded([&] {
        auto h = std::make_unique<xl_handle>();
        h->system = config && *config ? xsp::createSystem(config) : xsp::createSystem();
        if (!h->system)
            return fail(XL_CONFIG, "libxsp makes no system of this configuration");
        h->system->connect();
        h->system->initialize();
        h->detector = std::dynamic_pointer_cast<lambda::Detector>(h->system->detector(h->system->detectorIds().at(0)));
        if (!h->detector)
            return fail(XL_CONFIG, "the first detector of this configuration is no Lambda");
        for (const auto &id : h->system->receiverIds()) {
            auto receiver = std::dynamic_pointer_cast<lambda::Receiver>(h->system->receiver(id));
            if (!receiver)
                return fail(XL_CONFIG, id + " is no receiver of a Lambda");
            h->receivers.push_back(receiver);
            h->names.push_back(id);
        }
        h->mode = h->detector->operationMode();
        *handle = h.release();
        return static_cast<int>(XL_OK);
    });
}

void xl_close(xl_handle *h)
{
    if (!h)
        return;
    guarded([&] {
        if (h->system)
            h->system->disconnect();
        return static_cast<int>(XL_OK);
    });
    delete h;
}

int xl_get_int(xl_handle *h, int module, const char *name, int64_t *value)
{
    return guarded([&] {
        if (h->has(module))
            return module_int(*h, module, name, *value);
        auto found = INTS.find(name);
        if (found == INTS.end())
            return no_name(name);
        *value = found->second(*h);
        return static_cast<int>(XL_OK);
    });
}

int xl_get_double(xl_handle *h, int module, const char *name, double *value)
{
    return guarded([&] {
        if (h->has(module))
            return module_double(*h, module, name, *value);
        if (!std::strcmp(name, "shutter_time"))
            *value = h->detector->shutterTime();
        else if (!std::strcmp(name, "beam_energy"))
            *value = h->beam_energy;
        else
            return no_name(name);
        return static_cast<int>(XL_OK);
    });
}

int xl_get_doubles(xl_handle *h, int module, const char *name, double *values, size_t size, size_t *count)
{
    return guarded([&] {
        std::vector<double> found;
        if (h->has(module) && !std::strcmp(name, "temperature")) {
            auto told = h->detector->temperature(h->vendor(module));
            found.assign(told.begin(), told.end());
        } else if (!h->has(module) && !std::strcmp(name, "thresholds")) {
            auto told = h->detector->thresholds();
            found.assign(told.begin(), told.end());
        } else {
            return no_name(name);
        }
        return copy_out(found.data(), found.size(), values, size, count);
    });
}

int xl_get_string(xl_handle *h, int module, const char *name, char *text, size_t size, size_t *count)
{
    return guarded([&] {
        std::string found;
        if (h->has(module) && !std::strcmp(name, "id"))
            found = h->names[module];
        else if (h->has(module) && !std::strcmp(name, "firmware_version"))
            found = h->detector->firmwareVersion(h->vendor(module));
        else if (h->has(module) && !std::strcmp(name, "chip_ids"))
            found = joined(h->detector->chipIds(h->vendor(module)));
        else if (!h->has(module) && TEXTS.count(name))
            found = TEXTS.at(name)(*h);
        else
            return no_name(name);
        return copy_out(found.c_str(), found.size() + 1, text, size, count);
    });
}

int xl_set_int(xl_handle *h, int module, const char *name, int64_t value)
{
    return guarded([&] {
        auto found = SET_INTS.find(name);
        if (h->has(module) || found == SET_INTS.end())
            return no_name(name);
        if (!std::strcmp(name, "bit_depth") && !DEPTHS.count(static_cast<int>(value)))
            return fail(XL_INVALID, "a depth of " + std::to_string(value) + " bits");
        found->second(*h, value);
        return static_cast<int>(XL_OK);
    });
}

int xl_set_double(xl_handle *h, int module, const char *name, double value)
{
    return guarded([&] {
        if (h->has(module) && !std::strcmp(name, "voltage"))
            h->detector->setVoltage(h->vendor(module), value);
        else if (!h->has(module) && !std::strcmp(name, "shutter_time"))
            h->detector->setShutterTime(value);
        else if (!h->has(module) && !std::strcmp(name, "beam_energy"))
            h->beam_energy = value;
        else
            return no_name(name);
        return static_cast<int>(XL_OK);
    });
}

int xl_set_doubles(xl_handle *h, int module, const char *name, const double *values, size_t count)
{
    return guarded([&] {
        if (h->has(module) || std::strcmp(name, "thresholds"))
            return no_name(name);
        h->detector->setThresholds(std::vector<double>(values, values + count));
        return static_cast<int>(XL_OK);
    });
}

int xl_set_string(xl_handle *h, int module, const char *name, const char *text)
{
    return guarded([&] {
        const std::string value = text;
        auto found = SWITCHES.find(name);
        if (h->has(module))
            return no_name(name);
        if (found != SWITCHES.end() && (value == "ON" || value == "OFF"))
            (value == "ON" ? found->second.first : found->second.second)(*h);
        else if (!std::strcmp(name, "counter_mode") && (value == "SINGLE" || value == "DUAL"))
            set_mode(*h, [&](auto &m) {
                m.counter_mode = value == "DUAL" ? lambda::CounterMode::DUAL : lambda::CounterMode::SINGLE;
            });
        else if (!std::strcmp(name, "trigger_mode") && value == "SOFTWARE")
            h->detector->setTriggerMode(lambda::TrigMode::SOFTWARE);
        else if (!std::strcmp(name, "trigger_mode") && value == "EXT_SEQUENCE")
            h->detector->setTriggerMode(lambda::TrigMode::EXT_SEQUENCE);
        else if (!std::strcmp(name, "trigger_mode") && value == "EXT_FRAMES")
            h->detector->setTriggerMode(lambda::TrigMode::EXT_FRAMES);
        else
            return found != SWITCHES.end() || TEXTS.count(name) ? fail(XL_INVALID, value) : no_name(name);
        return static_cast<int>(XL_OK);
    });
}

int xl_start(xl_handle *h)
{
    return guarded([&] {
        h->system->startAcquisition();
        return static_cast<int>(XL_OK);
    });
}

int xl_stop(xl_handle *h)
{
    return guarded([&] {
        h->system->stopAcquisition();
        return static_cast<int>(XL_OK);
    });
}

int xl_reset(xl_handle *h)
{
    return guarded([&] {
        h->system->reset();
        h->system->initialize();
        h->mode = h->detector->operationMode();
        return static_cast<int>(XL_OK);
    });
}

int xl_status(xl_handle *h, int module, xl_module_status *status)
{
    return guarded([&] {
        if (!h->has(module))
            return no_name("status");
        auto &receiver = *h->receivers[module];
        status->connected = h->system->isConnected();
        status->ready = h->system->isReady();
        status->busy = h->system->isBusy(); /* of all: until the slowest module is done */
        status->frames_queued = static_cast<int32_t>(receiver.framesQueued());
#if XSP_VERSION >= 2
        status->ram_allocated = receiver.ramAllocated();
        status->voltage_settled = h->detector->voltageSettled(h->vendor(module));
#else
        status->ram_allocated = status->voltage_settled = 1;
#endif
        return static_cast<int>(XL_OK);
    });
}

int xl_frame(xl_handle *h, int module, int timeout_ms, xl_frame_info *out)
{
    return guarded([&] {
        if (!h->has(module))
            return no_name("frame");
        const auto *frame = h->receivers[module]->frame(timeout_ms);
        if (!frame)
            return static_cast<int>(XL_TIMEOUT);
        out->number = frame->nr();
        out->trigger = frame->trigger();
        out->data = frame->data();
        out->size = out->data ? frame->size() : 0;
        out->depth = h->receivers[module]->frameDepth();
        switch (frame->status()) {
        case xsp::FrameStatusCode::FRAME_OK: out->status = XL_FRAME_OK; break;
        case xsp::FrameStatusCode::FRAME_INCOMPLETE: out->status = XL_FRAME_INCOMPLETE; break;
        case xsp::FrameStatusCode::FRAME_MISSING: out->status = XL_FRAME_MISSING; break;
        default: out->status = XL_FRAME_COMPRESSION_FAILED;
        }
#if XSP_VERSION >= 2
        out->token = reinterpret_cast<uintptr_t>(frame);
#else
        out->token = out->number;
#endif
        return static_cast<int>(XL_OK);
    });
}

int xl_release(xl_handle *h, int module, uint64_t token)
{
    return guarded([&] {
        if (!h->has(module))
            return no_name("release");
#if XSP_VERSION >= 2
        h->receivers[module]->release(reinterpret_cast<const xsp::Frame *>(static_cast<uintptr_t>(token)));
#else
        h->receivers[module]->release(token);
#endif
        return static_cast<int>(XL_OK);
    });
}

} // extern "C"
