"""Ctrl-C at a chosen moment of a stage, for the tests that such a stage loses nothing and does nothing twice."""


def interrupt_call(monkeypatch, owner, name, nth):
    """The nth call of `owner.name` is interrupted. Returns the list of the arguments of all calls, as they come."""
    original, calls = getattr(owner, name), []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(owner, name, dying)
    return calls


def interrupt_saving(monkeypatch, trainable, checkpoint):
    """Training is interrupted as it begins to save this checkpoint."""
    save = trainable.save

    def stop(trained, folder):
        if folder.name == checkpoint:
            raise KeyboardInterrupt
        save(trained, folder)

    monkeypatch.setattr(trainable, "save", stop)
