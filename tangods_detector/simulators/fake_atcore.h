/* Types and functions of Andor's SDK3 (libatcore), as documented; all functions return 0 or an error. */

#ifndef FAKE_ATCORE_H
#define FAKE_ATCORE_H

#include <wchar.h>

typedef int AT_H;
typedef int AT_BOOL;
typedef long long AT_64;
typedef unsigned char AT_U8;
typedef wchar_t AT_WC;
typedef int (*FeatureCallback)(AT_H, const AT_WC *, void *);

#define AT_HANDLE_SYSTEM 1
#define AT_HANDLE_UNINITIALISED (-1)
#define AT_INFINITE 0xFFFFFFFFu

enum {
    AT_SUCCESS, AT_ERR_NOTINITIALISED, AT_ERR_NOTIMPLEMENTED, AT_ERR_READONLY, AT_ERR_NOTREADABLE, AT_ERR_NOTWRITABLE,
    AT_ERR_OUTOFRANGE, AT_ERR_INDEXNOTAVAILABLE, AT_ERR_INDEXNOTIMPLEMENTED, AT_ERR_EXCEEDEDMAXSTRINGLENGTH,
    AT_ERR_CONNECTION, AT_ERR_NODATA, AT_ERR_INVALIDHANDLE, AT_ERR_TIMEDOUT, AT_ERR_BUFFERFULL, AT_ERR_INVALIDSIZE,
    AT_ERR_INVALIDALIGNMENT, AT_ERR_COMM, AT_ERR_STRINGNOTAVAILABLE, AT_ERR_STRINGNOTIMPLEMENTED, AT_ERR_NULL_FEATURE,
    AT_ERR_NULL_HANDLE, AT_ERR_NULL_IMPLEMENTED_VAR, AT_ERR_NULL_READABLE_VAR, AT_ERR_NULL_READONLY_VAR,
    AT_ERR_NULL_WRITABLE_VAR, AT_ERR_NULL_MINVALUE, AT_ERR_NULL_MAXVALUE, AT_ERR_NULL_VALUE, AT_ERR_NULL_STRING,
    AT_ERR_NULL_COUNT_VAR, AT_ERR_NULL_ISAVAILABLE_VAR, AT_ERR_NULL_MAXSTRINGLENGTH, AT_ERR_NULL_EVCALLBACK,
    AT_ERR_NULL_QUEUE_PTR, AT_ERR_NULL_WAIT_PTR, AT_ERR_NULL_PTRSIZE, AT_ERR_NOMEMORY, AT_ERR_DEVICEINUSE,
    AT_ERR_DEVICENOTFOUND, AT_ERR_HARDWARE_OVERFLOW = 100
};

int AT_InitialiseLibrary(void);
int AT_FinaliseLibrary(void);
int AT_Open(int index, AT_H *h);
int AT_Close(AT_H h);
int AT_IsImplemented(AT_H h, const AT_WC *feature, AT_BOOL *out);
int AT_IsReadable(AT_H h, const AT_WC *feature, AT_BOOL *out);
int AT_IsWritable(AT_H h, const AT_WC *feature, AT_BOOL *out);
int AT_IsReadOnly(AT_H h, const AT_WC *feature, AT_BOOL *out);
int AT_SetInt(AT_H h, const AT_WC *feature, AT_64 value);
int AT_GetInt(AT_H h, const AT_WC *feature, AT_64 *value);
int AT_GetIntMin(AT_H h, const AT_WC *feature, AT_64 *value);
int AT_GetIntMax(AT_H h, const AT_WC *feature, AT_64 *value);
int AT_SetFloat(AT_H h, const AT_WC *feature, double value);
int AT_GetFloat(AT_H h, const AT_WC *feature, double *value);
int AT_GetFloatMin(AT_H h, const AT_WC *feature, double *value);
int AT_GetFloatMax(AT_H h, const AT_WC *feature, double *value);
int AT_SetBool(AT_H h, const AT_WC *feature, AT_BOOL value);
int AT_GetBool(AT_H h, const AT_WC *feature, AT_BOOL *value);
int AT_SetEnumIndex(AT_H h, const AT_WC *feature, int value);
int AT_SetEnumString(AT_H h, const AT_WC *feature, const AT_WC *text);
int AT_GetEnumIndex(AT_H h, const AT_WC *feature, int *value);
int AT_GetEnumCount(AT_H h, const AT_WC *feature, int *count);
int AT_GetEnumStringByIndex(AT_H h, const AT_WC *feature, int index, AT_WC *text, int length);
int AT_IsEnumIndexAvailable(AT_H h, const AT_WC *feature, int index, AT_BOOL *out);
int AT_IsEnumIndexImplemented(AT_H h, const AT_WC *feature, int index, AT_BOOL *out);
int AT_SetEnumerated(AT_H h, const AT_WC *feature, int value);
int AT_SetEnumeratedString(AT_H h, const AT_WC *feature, const AT_WC *text);
int AT_GetEnumerated(AT_H h, const AT_WC *feature, int *value);
int AT_GetEnumeratedCount(AT_H h, const AT_WC *feature, int *count);
int AT_GetEnumeratedString(AT_H h, const AT_WC *feature, int index, AT_WC *text, int length);
int AT_IsEnumeratedIndexAvailable(AT_H h, const AT_WC *feature, int index, AT_BOOL *out);
int AT_IsEnumeratedIndexImplemented(AT_H h, const AT_WC *feature, int index, AT_BOOL *out);
int AT_SetString(AT_H h, const AT_WC *feature, const AT_WC *text);
int AT_GetString(AT_H h, const AT_WC *feature, AT_WC *text, int length);
int AT_GetStringMaxLength(AT_H h, const AT_WC *feature, int *length);
int AT_Command(AT_H h, const AT_WC *feature);
int AT_QueueBuffer(AT_H h, AT_U8 *buffer, int size);
int AT_WaitBuffer(AT_H h, AT_U8 **buffer, int *size, unsigned int timeout);
int AT_Flush(AT_H h);
int AT_RegisterFeatureCallback(AT_H h, const AT_WC *feature, FeatureCallback callback, void *context);
int AT_UnregisterFeatureCallback(AT_H h, const AT_WC *feature, FeatureCallback callback, void *context);

/* Not of the SDK: what goes wrong, edges at the trigger input, and so on; fake_atcore.c has the list. 0: understood. */
int SIM_Command(const char *words);
/* "exposed", "delivered", "lost", "ignored" (edges), "queued"; -1: there is no such count. */
long long SIM_Count(const char *what);

#endif
