// How one fiber hands over to another. A context is a stack pointer; the registers that a function must preserve lie on
// the stack. -DCPU_UCONTEXT does it with the C library instead, on whatever processor that knows how.
#pragma once
#include <string.h>

#include "machine.h"

#if !defined(CPU_UCONTEXT) && (defined(__x86_64__) || defined(__aarch64__))
#define CPU_ASSEMBLY
#else
#include <ucontext.h>
#endif

namespace cpu {

static void fiber_main();

#ifdef CPU_ASSEMBLY
extern "C" void cpu_switch(void **from, void *to);

#ifdef __APPLE__  // a C name has an underscore in front of it in an object file
#define NAME "_cpu_switch"
#define FUNCTION ".globl _cpu_switch\n.private_extern _cpu_switch\n.p2align 2\n"
#else
#define NAME "cpu_switch"
#define FUNCTION ".globl cpu_switch\n.hidden cpu_switch\n.type cpu_switch, %function\n.p2align 2\n"
#endif

#ifdef __x86_64__
enum { SAVED = 6, RETURN_ADDRESS = 6, FRAME = 8 };  // in pointers: registers; where fiber_main goes; all, a multiple of 2
asm(".text\n" FUNCTION NAME ":" R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#else
enum { SAVED = 20, RETURN_ADDRESS = 11, FRAME = 20 };
asm(".text\n" FUNCTION NAME ":" R"(
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#endif
#undef NAME
#undef FUNCTION

static void switch_to(void **from, void *to) { cpu_switch(from, to); }

static void prepare(Fiber &f) {
    // Stacks that all begin at the same offset of a page would meet in the same lines of the cache.
    char *top = f.stack + STACK - f.index * 320 % 8192;
    void **sp = (void **)((uintptr_t)top & ~15ul) - FRAME;
    f.context = memset(sp, 0, SAVED * sizeof(void *));
    sp[RETURN_ADDRESS] = (void *)fiber_main;
}
#else
static ucontext_t contexts[MAX_THREADS + 1];  // the last one is the launcher's
static void switch_to(void **from, void *to) {
    if (!*from) *from = &contexts[MAX_THREADS];
    swapcontext((ucontext_t *)*from, (ucontext_t *)to);
}

static void prepare(Fiber &f) {
    ucontext_t *context = &contexts[f.index];
    getcontext(context);
    context->uc_stack.ss_sp = f.stack;
    context->uc_stack.ss_size = STACK;
    context->uc_link = nullptr;
    makecontext(context, fiber_main, 0);
    f.context = context;
}
#endif

}  // namespace cpu
