// Where this library lies in memory, and where its __shared__ variables lie, which are thread_local ones.
//
// Under Linux they are one piece of memory for each OS thread, which the loader knows. A Mac's loader does not say where
// its piece is; there (and with -DCPU_EMUTLS) the compiler asks a function of ours for the address of each variable.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "machine.h"
#ifdef __APPLE__
#include <dlfcn.h>
#include <mach-o/loader.h>
#define CPU_EMUTLS
#else
#include <link.h>
#endif

namespace cpu {

static char *shared_used;  // what the kernel has of shared_start to shared_end so far: all of it, where the loader says

#ifdef CPU_EMUTLS
static const size_t SHARED_ROOM = 2 * MAX_SHARED + 64 * 1024;  // smem_raw, static variables, and gaps between them

static void find_shared() {
    if (shared_start) return;
    void *memory = mmap(nullptr, SHARED_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED) abort();
    shared_start = shared_used = (char *)memory;
    shared_end = shared_start + SHARED_ROOM;
}

struct Variable {  // what the compiler makes of a thread_local variable: __emutls_control of its runtime library
    size_t size, align;
    char *address;
    const void *initial;  // never looked at: a GPU leaves in shared memory what was there
};

extern "C" void *__emutls_get_address(Variable *v) {
    if (!v->address) {
        find_shared();
        char *start = shared_start + (((size_t)(shared_used - shared_start) + v->align - 1) & -v->align);
        if (start + v->size > shared_end)
            fail("shared memory", "", 0, nullptr, "the __shared__ variables take more than %zu bytes", SHARED_ROOM);
        v->address = (char *)memset(start, 0xFF, v->size);
        shared_used = start + v->size;
    }
    return v->address;
}
#endif

#ifdef __APPLE__
static void find_image() {
    Dl_info info;
    if (!dladdr(fibers, &info)) abort();
    const auto *header = (const mach_header_64 *)info.dli_fbase;
    image_start = image_end = (uintptr_t)header;
    const char *at = (const char *)(header + 1);
    for (uint32_t i = 0; i < header->ncmds; i++, at += ((const load_command *)at)->cmdsize) {
        const auto *segment = (const segment_command_64 *)at;  // addresses count from the header, at 0
        if (segment->cmd != LC_SEGMENT_64 || !strcmp(segment->segname, "__LINKEDIT")) continue;
        uintptr_t end = image_start + segment->vmaddr + segment->vmsize;
        if (end > image_end) image_end = end;
    }
}
#else
static int find_this_library(struct dl_phdr_info *info, size_t, void *) {
    bool found = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto &part = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD) {
            found |= (uintptr_t)fibers - start < part.p_memsz;
            image_end = start + part.p_memsz;
        }
#ifndef CPU_EMUTLS
        if (part.p_type == PT_TLS) {
            shared_start = (char *)info->dlpi_tls_data;
            shared_used = shared_end = shared_start + part.p_memsz;
        }
#endif
    }
    image_start = info->dlpi_addr;
    return found;  // not zero: look no further
}
static void find_image() { dl_iterate_phdr(find_this_library, nullptr); }
#endif

// Called by the OS thread that launches: each has __shared__ variables of its own under Linux.
static void find_memory() {
#ifdef CPU_EMUTLS
    find_shared();
#endif
    dynamic_start = dynamic_shared();
    *dynamic_start = 0;  // the first touch gives this OS thread its thread_local variables
    find_image();
}

static void poison_shared() {  // a GPU leaves in shared memory what was there: here that is NaN, or -1
    char *dynamic_end = dynamic_start + MAX_SHARED;
    memset(shared_start, 0xFF, dynamic_start - shared_start);
    memset(dynamic_start, 0xFF, dynamic_bytes);
    memset(dynamic_end, 0xFF, shared_used - dynamic_end);
}

}  // namespace cpu
