/* DCAM-API 4 as its clients see it: structures, ids, error codes. Facts of the published interface, names shortened. */
#ifndef FAKE_DCAM_H
#define FAKE_DCAM_H

#include <stdint.h>

typedef int32_t DCAMERR; /* negative: failed; positive: done */
typedef struct camera *HDCAM;
typedef struct waiter *HDCAMWAIT;

typedef struct {
    int32_t size, iDeviceCount, reserved, initoptionbytes;
    const int32_t *initoption;
    const void *guid;
} DCAMAPI_INIT;

typedef struct {
    int32_t size, index;
    HDCAM hdcam;
} DCAMDEV_OPEN;

typedef struct {
    int32_t size, domain, capflag, kind;
} DCAMDEV_CAPABILITY;

typedef struct {
    int32_t size, iString;
    char *text;
    int32_t textbytes;
} DCAMDEV_STRING;

typedef struct {
    int32_t cbSize, iProp, option, reserved, attribute, iGroup, iUnit, attribute2;
    double valuemin, valuemax, valuestep, valuedefault;
    int32_t nMaxChannel, reserved3, nMaxView, iProp_NumberOfElement, iProp_ArrayBase, iPropStep_Element;
} DCAMPROP_ATTR;

typedef struct {
    int32_t cbSize, iProp;
    double value;
    char *text;
    int32_t textbytes;
} DCAMPROP_VALUETEXT;

typedef struct {
    int32_t size, iKind;
    void **buffer;
    int32_t buffercount;
} DCAMBUF_ATTACH;

typedef struct {
    uint32_t sec;
    int32_t microsec;
} DCAM_TIMESTAMP;

typedef struct {
    int32_t size, iKind, option, iFrame;
    void *buf;
    int32_t rowbytes, type, width, height, left, top;
    DCAM_TIMESTAMP timestamp;
    int32_t framestamp, camerastamp;
} DCAMBUF_FRAME;

typedef struct {
    int32_t size, supportevent;
    HDCAMWAIT hwait;
    HDCAM hdcam;
} DCAMWAIT_OPEN;

typedef struct {
    int32_t size, eventhappened, eventmask, timeout;
} DCAMWAIT_START;

typedef struct {
    int32_t size, iKind, nNewestFrameIndex, nFrameCount;
} DCAMCAP_TRANSFERINFO;

enum {
    SUCCESS = 1,
    BUSY = (int32_t)0x80000101,
    ABORT = (int32_t)0x80000102,
    NOTREADY = (int32_t)0x80000103,
    NOTSTABLE = (int32_t)0x80000104,
    TIMEOUT = (int32_t)0x80000106,
    NOTBUSY = (int32_t)0x80000107,
    EXCLUDED = (int32_t)0x80000110,
    NOMEMORY = (int32_t)0x80000203,
    NOCAMERA = (int32_t)0x80000206,
    LOSTFRAME = (int32_t)0x80000301,
    TOOFREQUENTTRIGGER = (int32_t)0x80000305,
    INVALIDCAMERA = (int32_t)0x80000806,
    INVALIDHANDLE = (int32_t)0x80000807,
    INVALIDPARAM = (int32_t)0x80000808,
    INVALIDVALUE = (int32_t)0x80000821,
    OUTOFRANGE = (int32_t)0x80000822,
    NOTWRITABLE = (int32_t)0x80000823,
    INVALIDPROPERTYID = (int32_t)0x80000825,
    NOPROPERTY = (int32_t)0x80000828,
    INVALIDSUBARRAY = (int32_t)0x8000082b,
    ACCESSDENY = (int32_t)0x8000082c,
    NOVALUETEXT = (int32_t)0x8000082d,
    INVALIDFRAMEINDEX = (int32_t)0x80000833,
    NOTSUPPORT = (int32_t)0x80000f03,
    MISSINGFRAME_TROUBLE = (int32_t)0x80000f06,
    NOCONNECTION = (int32_t)0x80000f07,
    INVALIDWAITHANDLE = (int32_t)0x84002001,
};

enum { EVENT_TRANSFERRED = 1, EVENT_FRAMEREADY = 2, EVENT_CYCLEEND = 4, EVENT_EXPOSUREEND = 8, EVENT_STOPPED = 16 };
enum { STATUS_ERROR = 0, STATUS_BUSY = 1, STATUS_READY = 2, STATUS_STABLE = 3, STATUS_UNSTABLE = 4 };
enum { MONO8 = 1, MONO16 = 2, MONO12P = 5 };
enum { CAPFLAG_TIMESTAMP = 1, CAPFLAG_FRAMESTAMP = 2, CAPFLAG_CAMERASTAMP = 4 };

enum {
    TRIGGERSOURCE = 0x00100110,
    TRIGGERACTIVE = 0x00100120,
    TRIGGER_MODE = 0x00100210,
    TRIGGERPOLARITY = 0x00100220,
    TRIGGERTIMES = 0x00100240,
    TRIGGERDELAY = 0x00100260,
    TRIGGERMULTIFRAME_COUNT = 0x00100280,
    EXPOSURETIME = 0x001F0110,
    TRIGGER_GLOBALEXPOSURE = 0x001F0300,
    SENSORTEMPERATURE = 0x00200310,
    SENSORCOOLER = 0x00200320,
    SENSORTEMPERATURETARGET = 0x00200330,
    SENSORCOOLERSTATUS = 0x00200340,
    DEFECTCORRECT_MODE = 0x00470010,
    HOTPIXELCORRECT_LEVEL = 0x00470030,
    READOUTSPEED = 0x00400110,
    SENSORMODE = 0x00400210,
    BINNING = 0x00401110,
    SUBARRAYHPOS = 0x00402110,
    SUBARRAYHSIZE = 0x00402120,
    SUBARRAYVPOS = 0x00402130,
    SUBARRAYVSIZE = 0x00402140,
    SUBARRAYMODE = 0x00402150,
    TIMING_READOUTTIME = 0x00403010,
    TIMING_MINTRIGGERINTERVAL = 0x00403050,
    INTERNALFRAMERATE = 0x00403810,
    INTERNAL_FRAMEINTERVAL = 0x00403820,
    BITSPERCHANNEL = 0x00420130,
    IMAGE_WIDTH = 0x00420210,
    IMAGE_HEIGHT = 0x00420220,
    IMAGE_ROWBYTES = 0x00420230,
    IMAGE_FRAMEBYTES = 0x00420240,
    IMAGE_TOPOFFSETBYTES = 0x00420250,
    IMAGE_PIXELTYPE = 0x00420270,
    BUFFER_ROWBYTES = 0x00420330,
    BUFFER_FRAMEBYTES = 0x00420340,
    BUFFER_TOPOFFSETBYTES = 0x00420350,
    BUFFER_PIXELTYPE = 0x00420360,
    FRAMEBUNDLE_MODE = 0x00421010,
    TIMESTAMP_PRODUCER = 0x00410A10,
    FRAMESTAMP_PRODUCER = 0x00410A20,
    CAMERASTATUS_INPUTTRIGGER = 0x004D1120,
    SYSTEM_ALIVE = 0x00FF0010,
    CONVERSIONFACTOR_COEFF = 0x00FFE010,
    CONVERSIONFACTOR_OFFSET = 0x00FFE020,
};
#endif
