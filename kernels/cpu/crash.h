// A kernel that takes an address for its own which nobody gave it is stopped by the system: a signal, at which the
// process ends. Here the launch ends instead, with the line, and Python goes on to say what happened.
//
// What the kernel wrote before that may lie anywhere: nothing that this process computes from then on is to be trusted.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

#include "machine.h"

namespace cpu {

static const int CRASHES[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static const char *const CRASH_SAYS[] = {"segmentation fault: it reads or writes memory that nobody gave it",
                                         "bus error: it reads or writes memory that is not there", "it divides by zero",
                                         "illegal instruction: it comes to where no code is"};
static struct sigaction actions_before[4];
static stack_t stack_before;
static pthread_t launching;

static uintptr_t pc_of(const void *context) {  // the instruction that was being executed; 0 where we do not know how
    const auto &machine = ((const ucontext_t *)context)->uc_mcontext;
#if defined(__APPLE__) && defined(__aarch64__)
    return (uintptr_t)machine->__ss.__pc;
#elif defined(__APPLE__)
    return (uintptr_t)machine->__ss.__rip;
#elif defined(__aarch64__)
    return machine.pc;
#elif defined(__x86_64__)
    return machine.gregs[REG_RIP];
#else
    (void)machine;
    return 0;
#endif
}

static void forget_crashes() {
    for (int i = 0; i < 4; i++) sigaction(CRASHES[i], &actions_before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
}

static void on_crash(int number, siginfo_t *info, void *context) {
    if (!pthread_equal(pthread_self(), launching)) {  // another thread's: it happens again, to whom it concerns
        forget_crashes();
        return;
    }
    uintptr_t pc = pc_of(context);
    bool ours = pc - image_start < image_end - image_start;  // not in memcpy, say
    int which = 0;
    while (CRASHES[which] != number) which++;
    const char *says = CRASH_SAYS[which];
    if ((uintptr_t)running->stack - (uintptr_t)info->si_addr <= 4096)  // the page below its stack
        says = "a thread's own variables and calls take more than 256 kB";
    fail("crash", "", 0, ours ? (const void *)(pc + 1) : nullptr, "%s", says);
}

static void catch_crashes() {
    static char stack[64 * 1024];  // the fiber's own may be full, which is a crash, too
    stack_t other = {};
    other.ss_sp = stack, other.ss_size = sizeof stack;
    sigaltstack(&other, &stack_before);
    launching = pthread_self();
    struct sigaction action = {};
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left for good: no signal may stay blocked
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < 4; i++) sigaction(CRASHES[i], &action, &actions_before[i]);
}

}  // namespace cpu
