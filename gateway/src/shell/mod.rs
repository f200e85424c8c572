//! Threads, sockets, clocks, configuration: what carries bytes between the core and the world.
