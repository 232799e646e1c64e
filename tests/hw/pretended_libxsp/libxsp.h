/* Declarations that resources/lambda/xl_libxsp.cpp is compiled against in a test, for libxsp is not public: what its
 * documentation and public drivers tell of its classes, and where they do not, what we take them to be. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace xsp {

class RuntimeError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
    int code() const noexcept;
};

class ConfigError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

enum class FrameStatusCode { FRAME_OK, FRAME_INCOMPLETE, FRAME_MISSING, FRAME_COMPRESSION_FAILED };

class Frame {
public:
    virtual ~Frame();
    virtual uint64_t nr() const = 0;
    virtual uint64_t trigger() const = 0;
    virtual FrameStatusCode status() const = 0;
    virtual size_t size() const = 0;
    virtual const uint8_t *data() const = 0;
};

struct Position { double x, y, z; };
struct Rotation { double alpha, beta, gamma; };

class Detector {
public:
    virtual ~Detector();
};

class Receiver {
public:
    virtual ~Receiver();
};

class System {
public:
    virtual ~System();
    virtual std::string id() const = 0;
    virtual std::vector<std::string> detectorIds() const = 0;
    virtual std::vector<std::string> receiverIds() const = 0;
    virtual std::shared_ptr<Detector> detector(const std::string &id) = 0;
    virtual std::shared_ptr<Receiver> receiver(const std::string &id) = 0;
    virtual void connect() = 0;
    virtual void disconnect() = 0;
    virtual void initialize() = 0;
    virtual bool isConnected() const = 0;
    virtual bool isReady() const = 0;
    virtual bool isBusy() const = 0;
    virtual void reset() = 0;
    virtual void startAcquisition() = 0;
    virtual void stopAcquisition() = 0;
};

std::unique_ptr<System> createSystem();
std::unique_ptr<System> createSystem(const std::string &config);
std::string libraryVersion();

namespace lambda {

enum class BitDepth { DEPTH_1, DEPTH_6, DEPTH_12, DEPTH_24 };
enum class ChargeSumming { OFF, ON };
enum class CounterMode { SINGLE, DUAL };
enum class Pitch { PITCH_55, PITCH_110 };
enum class TrigMode { SOFTWARE, EXT_SEQUENCE, EXT_FRAMES };
enum class GatingMode { OFF, ON };
enum class Feature { FEAT_HV, FEAT_1_6_BIT, FEAT_MEDIPIX_DAC_IO, FEAT_EXTENDED_GATING };

struct OperationMode {
    BitDepth bit_depth;
    ChargeSumming charge_summing;
    CounterMode counter_mode;
    Pitch pitch;
};

class Detector : public xsp::Detector {
public:
    virtual int numberOfModules() const = 0;
    virtual uint64_t frameCount() const = 0;
    virtual void setFrameCount(uint64_t count) = 0;
    virtual double shutterTime() const = 0;
    virtual void setShutterTime(double ms) = 0;
    virtual int framesPerTrigger() const = 0;
    virtual void setFramesPerTrigger(int count) = 0;
    virtual int roiRows() const = 0;
    virtual void setRoiRows(int rows) = 0;
    virtual OperationMode operationMode() const = 0;
    virtual void setOperationMode(const OperationMode &mode) = 0;
    virtual std::vector<double> thresholds() const = 0;
    virtual void setThresholds(const std::vector<double> &keV) = 0;
    virtual TrigMode triggerMode() const = 0;
    virtual void setTriggerMode(TrigMode mode) = 0;
    virtual GatingMode gatingMode() const = 0;
    virtual void setGatingMode(GatingMode mode) = 0;
    virtual bool interpolationEnabled() const = 0;
    virtual void enableInterpolation() = 0;
    virtual void disableInterpolation() = 0;
    virtual bool saturationFlagEnabled() const = 0;
    virtual void enableSaturationFlag() = 0;
    virtual void disableSaturationFlag() = 0;
    virtual bool countrateCorrectionEnabled() const = 0;
    virtual void enableCountrateCorrection() = 0;
    virtual void disableCountrateCorrection() = 0;
    virtual bool flatfieldEnabled() const = 0;
    virtual void enableFlatfield() = 0;
    virtual void disableFlatfield() = 0;
    virtual std::string firmwareVersion(int module) const = 0;
    virtual std::vector<std::string> chipIds(int module) const = 0;
    virtual bool hasFeature(int module, Feature feature) const = 0;
    virtual double voltage(int module) const = 0;
    virtual void setVoltage(int module, double volts) = 0;
    virtual bool voltageSettled(int module) const = 0;
    virtual std::vector<double> temperature(int module) const = 0;
    virtual double humidity(int module) const = 0;
    virtual double sensorCurrent(int module) const = 0;
    virtual double saturationThreshold(int module) const = 0;
};

class Receiver : public xsp::Receiver {
public:
    virtual int frameWidth() const = 0;
    virtual int frameHeight() const = 0;
    virtual int frameDepth() const = 0;
    virtual int framesQueued() const = 0;
    virtual int maxFrames() const = 0;
    virtual bool ramAllocated() const = 0;
    virtual const Frame *frame(int timeout_ms) = 0;
    virtual void release(uint64_t number) = 0;
    virtual void release(const Frame *frame) = 0;
    virtual Position position() const = 0;
    virtual Rotation rotation() const = 0;
};

} // namespace lambda
} // namespace xsp
