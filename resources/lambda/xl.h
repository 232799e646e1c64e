/* A C interface to libxsp, the C++ library of X-Spectrum's Lambda detectors.
 *
 * libxsp itself (std::string, shared_ptr, exceptions) cannot be called from Python by ctypes. A site that has it builds
 * this interface around it from xl_libxsp.cpp (README.md says how); tangods_detector/simulators/fake_xl.c has the same
 * interface and pretends a detector, for tests.
 *
 * Rules
 *  - `module` counts from 0; XL_DETECTOR means the detector as a whole.
 *  - Names are those of xspd's variables (shutter_time, thresholds, ...), in its units: ms, keV, V.
 *  - Functions return XL_OK, XL_TIMEOUT, or what went wrong: the upper 16 bits of libxsp's status code (0x8001 ...), or
 *    XL_CONFIG ... of this interface. xl_error then tells it in words. No C++ exception leaves this interface.
 *  - One thread at a time calls, but for xl_frame and xl_release: these may be called for each module by a thread of its
 *    own beside the others, xl_release by any. Blocking calls hold no lock that another call needs.
 *  - Booleans are ints; switches (charge_summing, ...) are the texts ON and OFF. */
#ifndef XL_H
#define XL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define XL_ABI 1         /* of this header; xl_abi tells that of the library */
#define XL_DETECTOR (-1) /* instead of a module */

enum xl_result {
    XL_OK = 0,
    XL_TIMEOUT = 1, /* of xl_frame: there is no frame */
    XL_CONFIG = 2,  /* the configuration file cannot be used */
    XL_NAME = 3,    /* no such name, or not of this type */
    XL_SPACE = 4,   /* the caller's buffer is too small; the size that is needed was told */

    /* libxsp */
    XL_UNEXPECTED = 0x8001,
    XL_INTERNAL = 0x8002,
    XL_OUT_OF_MEMORY = 0x8003,
    XL_RESOURCE_UNAVAILABLE = 0x8004,
    XL_COMMUNICATION = 0x8005,
    XL_NOT_CONNECTED = 0x8010,
    XL_NOT_SUPPORTED_HERE = 0x8011,
    XL_NOT_READY = 0x8012,
    XL_BUSY = 0x8013,
    XL_FAILURE = 0x8014,
    XL_NOT_ACCEPTED = 0x8040,
    XL_NOT_IMPLEMENTED = 0x8041,
    XL_NOT_SUPPORTED = 0x8042,
    XL_TIMED_OUT = 0x8043,
    XL_FAILED = 0x8044,
    XL_OUT_OF_RANGE = 0x804a,
    XL_INVALID = 0x804b
};

enum xl_frame_status { XL_FRAME_OK = 0, XL_FRAME_INCOMPLETE = 1, XL_FRAME_MISSING = 2, XL_FRAME_COMPRESSION_FAILED = 3 };

typedef struct xl_handle xl_handle;

typedef struct xl_module_status {
    int32_t connected;
    int32_t ready;
    int32_t busy;
    int32_t ram_allocated;   /* 1 where libxsp does not tell */
    int32_t voltage_settled; /* 1 where libxsp does not tell, or there is no high voltage */
    int32_t frames_queued;
} xl_module_status;

typedef struct xl_frame_info {
    uint64_t number;  /* as libxsp tells it, from 1 */
    uint64_t trigger; /* likewise */
    uint64_t token;   /* gives it back; unique among the frames that are out */
    const void *data; /* in the ring of the module, good until xl_release; NULL if there are no pixels */
    uint64_t size;    /* bytes */
    int32_t status;   /* enum xl_frame_status */
    int32_t depth;    /* bits of a pixel */
} xl_frame_info;

/* XL_ABI of the library. */
uint32_t xl_abi(void);

/* Read the configuration (NULL or "": where libxsp looks for it), connect, initialise. *handle is NULL after a failure,
 * which xl_error(NULL, ...) tells. */
int xl_open(const char *config, xl_handle **handle);

/* Disconnect and free. No frame may be in use, no other call be under way. NULL does nothing. */
void xl_close(xl_handle *handle);

/* What went wrong in the last call of this thread that failed, as a text that ends with 0; returns its length. */
size_t xl_error(xl_handle *handle, char *text, size_t size);

/* Values. Of the detector: bit_depth, n_frames, frames_per_trigger, roi_rows, n_modules (int); shutter_time, beam_energy
 * (double); thresholds (doubles); counter_mode, charge_summing, trigger_mode, gating_mode, interpolation, saturation_flag,
 * countrate_correction, flatfield_correction, type, version (string).
 * Of a module: frame_width, frame_height, frame_depth, max_frames, features (int); voltage, humidity, sensor_current,
 * saturation_threshold, position_x, position_y, rotation (double); temperature (doubles); id, firmware_version,
 * chip_ids (string; ids with commas between them).
 * *count is how many there are, also with XL_SPACE; that of a string includes the 0 at its end. */
int xl_get_int(xl_handle *handle, int module, const char *name, int64_t *value);
int xl_get_double(xl_handle *handle, int module, const char *name, double *value);
int xl_get_doubles(xl_handle *handle, int module, const char *name, double *values, size_t size, size_t *count);
int xl_get_string(xl_handle *handle, int module, const char *name, char *text, size_t size, size_t *count);

/* The settings among these, and voltage of a module. */
int xl_set_int(xl_handle *handle, int module, const char *name, int64_t value);
int xl_set_double(xl_handle *handle, int module, const char *name, double value);
int xl_set_doubles(xl_handle *handle, int module, const char *name, const double *values, size_t count);
int xl_set_string(xl_handle *handle, int module, const char *name, const char *text);

int xl_start(xl_handle *handle);
int xl_stop(xl_handle *handle);  /* also where nothing runs */
int xl_reset(xl_handle *handle); /* initialise again */

int xl_status(xl_handle *handle, int module, xl_module_status *status);

/* The oldest frame that was not taken yet; waits for it up to timeout_ms. A frame that was taken stays in the ring, and
 * takes room there, until it is released. */
int xl_frame(xl_handle *handle, int module, int timeout_ms, xl_frame_info *frame);
int xl_release(xl_handle *handle, int module, uint64_t token);

#ifdef __cplusplus
}
#endif
#endif
