# Thin wrapper: the program is built by cargo (user/), the kernel module by Kbuild (kernel/).

.PHONY: all user kernel clean

all: user $(if $(wildcard kernel/Makefile),kernel)

user:
	$(MAKE) -C user

kernel:
	$(MAKE) -C kernel

clean:
	$(MAKE) -C user clean
	$(if $(wildcard kernel/Makefile),$(MAKE) -C kernel clean)
