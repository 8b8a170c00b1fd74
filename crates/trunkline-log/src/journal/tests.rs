mod bounds;
mod damage;
mod faults;
mod fuzz;
mod unsynced;
mod world;
