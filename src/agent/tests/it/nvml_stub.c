/* Stands in for NVIDIA's management library: two GPUs, or whatever MESHWORK_STUB says.
 * Structures are those of nvml.h (NVML API reference); only the fields that are read are filled. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int mode(const char *name) {
    const char *path = getenv("MESHWORK_STUB");
    char buffer[32] = "";
    if (!path) return 0;
    /* A file, so that a test can change it while the agent runs. */
    int length = 0;
    extern int open(const char *, int, ...);
    int fd = open(path, 0);
    if (fd < 0) return 0;
    length = (int)read(fd, buffer, sizeof buffer - 1);
    close(fd);
    return length > 0 && strncmp(buffer, name, strlen(name)) == 0;
}

int nvmlInit_v2(void) {
    if (mode("hang")) for (;;) pause();
    if (mode("fail")) return 999; /* NVML_ERROR_UNKNOWN */
    if (mode("none")) return 9;   /* NVML_ERROR_DRIVER_NOT_LOADED */
    if (mode("crash")) abort();
    return 0;
}
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "stub"; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { strncpy(out, "580.1", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    if (index == 1 && mode("lost")) return 15; /* NVML_ERROR_GPU_IS_LOST */
    *out = (void *)(size_t)(index + 1);
    return 0;
}
int nvmlDeviceGetName(void *device, char *out, unsigned n) {
    (void)device;
    strncpy(out, "NVIDIA H100 80GB HBM3", n);
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *out, unsigned n) {
    strncpy(out, device == (void *)1 ? "GPU-one" : "GPU-two", n);
    return 0;
}
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *out) {
    (void)device;
    out->total = 85899345920ull;
    out->reserved = 0;
    out->used = 1048576;
    out->free = out->total - out->used;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    (void)device;
    *major = 9;
    *minor = 0;
    return 0;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    (void)device;
    *current = *pending = 0;
    return 0;
}
int nvmlDeviceGetNumaNodeId(void *device, unsigned *out) { (void)device; *out = 1; return 0; }
