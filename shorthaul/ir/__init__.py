"""The intermediate representation: containers, memlets, nodes, programs and how to change them."""
