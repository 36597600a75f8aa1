# Thin wrapper: the program is built by cargo (user/), the kernel module by Kbuild (kernel/).

.PHONY: all user kernel kernel-where-possible clean

KDIR ?= /lib/modules/$(shell uname -r)/build

all: user kernel-where-possible

# The program works without the module: a machine that cannot build it is told why, and goes on.
kernel-where-possible:
	@if sh kernel/check.sh $(KDIR); then $(MAKE) -C kernel KDIR=$(KDIR); \
	else echo "the module is not built; the embedded engine needs none"; fi

user:
	$(MAKE) -C user

kernel:
	$(MAKE) -C kernel KDIR=$(KDIR)

clean:
	$(MAKE) -C user clean
	$(MAKE) -C kernel clean
