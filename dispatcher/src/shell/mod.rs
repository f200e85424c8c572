//! Threads, sockets, clocks, configuration: what carries bytes and jobs between the core, the store and the world.
