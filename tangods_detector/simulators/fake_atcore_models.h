/* The cameras that fake_atcore.c pretends to have: what differs between them. Texts as vendor documents and other
 * drivers have them; where those are silent (GainMode of Balor, Marana, Sona) they are only like that. */

#include <wchar.h>

#define LIST(...) (const wchar_t *const[]) { __VA_ARGS__, NULL }

struct model {
    const char *word;         /* in the command `camera` */
    const wchar_t *name;      /* CameraModel */
    int width, height;        /* of the sensor, pixels */
    double pixel, row;        /* um; s for a pair of rows at the first readout rate */
    const wchar_t *gain;      /* the feature */
    const wchar_t *const *gains;
    const wchar_t *const *rates; /* the second takes twice as long, and so on */
    unsigned rates_available; /* bits */
    unsigned triggers;        /* bits: Internal, External Start, External Exposure, Software, Advanced, External */
    int global, binning_list; /* has a global shutter; AOIBinning, else AOIHBin and AOIVBin */
    int step_x, step_y;       /* of the region's size, binned pixels */
    int target;               /* TargetSensorTemperature: 0 not there, 1 read only, 2 writable */
    double target_min, target_max;
    int clock;                /* Hz */
    int filter;               /* has SpuriousNoiseFilter */
};

static const struct model MODELS[] = {
    {"zyla", L"ZYLA-5.5-CL10", 2560, 2160, 6.5, 9.25e-6, L"SimplePreAmpGainControl",
     LIST(L"12-bit (high well capacity)", L"12-bit (low noise)", L"16-bit (low noise & high well capacity)"),
     LIST(L"280 MHz", L"100 MHz", L"200 MHz"), 3, 0x2f, 1, 1, 1, 2, 1, 0, 0, 100000000, 1},
    {"zyla42", L"ZYLA-4.2P-USB3", 2048, 2048, 6.5, 9.75e-6, L"SimplePreAmpGainControl",
     LIST(L"12-bit (high well capacity)", L"12-bit (low noise)", L"16-bit (low noise & high well capacity)"),
     LIST(L"540 MHz", L"200 MHz"), 3, 0x2f, 0, 1, 1, 2, 0, 0, 0, 40000000, 1},
    {"balor", L"BALOR-X-17F12", 4128, 4104, 12.0, 9.0e-6, L"GainMode",
     LIST(L"High dynamic range (16-bit)", L"Fast speed (12-bit)"), LIST(L"270 MHz"), 1, 0x2f, 1, 0, 8, 8, 2, -30, 5,
     100000000, 0},
    {"marana", L"MARANA-4BV11", 2048, 2048, 11.0, 20.0e-6, L"GainMode",
     LIST(L"High dynamic range (16-bit)", L"Fast speed (12-bit)"), LIST(L"100 MHz", L"180 MHz"), 3, 0x2d, 0, 1, 4, 2, 2,
     -45, 20, 100000000, 1},
    {"sona", L"SONA-4BV11", 2048, 2048, 11.0, 20.0e-6, L"GainMode",
     LIST(L"High dynamic range (16-bit)", L"High well capacity (12-bit)"), LIST(L"100 MHz"), 1, 0x29, 0, 1, 4, 2, 2,
     -45, 20, 100000000, 1},
    {"simcam", L"SIMCAM CMOS", 2560, 2160, 6.5, 10e-6, L"SimplePreAmpGainControl", LIST(L"12-bit (low noise)"),
     LIST(L"550 MHz"), 1, 0x3f, 0, 1, 1, 1, 0, 0, 0, 1000000, 0},
};
