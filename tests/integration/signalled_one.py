from signalled import Napping

napping = Napping.as_flow(name="napping")
if __name__ == "__main__":
    napping.serve(name="served")
