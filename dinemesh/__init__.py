"""The contracts of Dinemesh, generated from `protos/`, and the kit that its services stand on."""
