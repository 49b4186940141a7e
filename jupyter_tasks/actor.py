"""Actors: objects that live in a process of their own. `@jt.remote` on a class, handles, methods, `kill`. Any thread.

    ActorClass    what `@jt.remote` makes of a class: `.remote(...)` makes an actor and returns its handle
    ActorHandle   stands for the actor: `handle.method.remote(...)` submits a call. It may be sent anywhere
    ActorMethod   one method of one handle

A handle holds a ref of the actor; an actor lives as long as there is a handle, and a little longer: it does the calls
that were submitted. What a handle knows of the class is text (`_Meta`), so whoever has one needs not the class itself.
"""

from __future__ import annotations

import functools
import inspect
import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from jupyter_tasks import exceptions, functions, launch, session
from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.wire.frames import CALL_OF, Kind, frame, show_id, to_json
from jupyter_tasks.worker import context

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = [
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "current_handle",
    "exit_actor",
    "get_actor",
    "kill",
    "list_actors",
    "method",
]

DEFAULT_NAMESPACE = "default"
ASYNC_CONCURRENCY = 1000  # calls of an async actor at a time, unless max_concurrency says otherwise; Ray's number
MOST_DOC = 2000  # characters of a method's docstring that handles carry
_ACTOR_OPTIONS = frozenset(
    {
        "executor",
        "get_if_exists",
        "lifetime",
        "max_concurrency",
        "max_restarts",
        "max_task_retries",
        "memory",
        "name",
        "namespace",
        "num_cpus",
        "num_gpus",
        "resources",
    }
)
_METHOD_OPTIONS = frozenset(
    {"generator_backpressure", "max_task_retries", "name", "num_returns", "retry_exceptions", "timeout"}
)
_NOT_CALLED = frozenset({"__init__", "__new__", "__del__", "__init_subclass__", "__class_getitem__"})
_MARK = "__jupyter_tasks_method__"  # attribute of a function: what `@jt.method` was given
_KINDS = {kind.value: kind for kind in inspect._ParameterKind}


class _MethodMeta:
    """What handles know of one method."""

    def __init__(self, index: int, record: dict[str, Any], label: str) -> None:
        self.name: str = record["name"]
        self.label = f"{label}.{self.name}"
        self.head = CALL_OF.pack(index)
        self.doc: str | None = record["doc"] or None
        self.options: dict[str, Any] = record["options"]  # as on the wire
        params = record["params"]
        self.signature = _signature_from(params, record["returns"]) if params is not None else None


class _Meta:
    """What handles know of a class."""

    def __init__(self, text: str, label: str) -> None:
        record = json.loads(text)
        self.text = text
        self.label = label
        self.class_name: str = record["name"]
        self.asynchronous: bool = record["asynchronous"]
        self.methods = {each["name"]: _MethodMeta(i, each, label) for i, each in enumerate(record["methods"])}


_meta_of = functools.lru_cache(512)(_Meta)  # of all handles of a class the same


# -- classes --------------------------------------------------------------------------------------------------------


class ActorClass:
    """A class whose instances live in processes of their own: call `.remote(...)`. Made by `@remote`."""

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self._cls = cls
        self._options = _checked_actor_options(options, cls.__name__)
        self._lock = threading.Lock()
        self._sent: dict[Client, functions.Code] = {}  # where it is known
        self._thread = self._options.get("executor") == "thread"
        self._signature = functions._signature(cls)
        self._record = _record_of(cls)
        functools.update_wrapper(self, cls, updated=())

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Makes an actor. Returns its handle at once; its constructor runs in its own process.

        Refs among the arguments are awaited and replaced by their values, as for a task. What the constructor raises,
        calls of the actor raise: an ActorDiedError with its traceback.

        Raises:
            TypeError: the arguments do not fit the constructor.
            UnserializableError: an argument cannot be sent; names it.
            ValueError: it needs more of a resource than there is.
            ActorAlreadyExistsError: a living actor has this name.
        """
        functions.check_call(self._signature, self._cls.__name__, args, kwargs)
        name = self._options.get("name")
        namespace = self._options.get("namespace") or DEFAULT_NAMESPACE
        if name is not None and self._options.get("lifetime") == "detached":
            return self._remote_detached(args, kwargs, name, namespace)
        client = session.current_client()
        if name is None:
            return self._make(client, args, kwargs, "", namespace)
        while True:
            found = _find(client, name, namespace) or _find_detached(name, namespace)
            if found is not None:
                if self._options.get("get_if_exists"):
                    return found
                raise _exists(name)
            handle = self._make(client, args, kwargs, name, namespace)
            if client.request("actor_made", id=handle._jt_ref.id):
                return handle
            if self._thread:
                client.threads.forget_actor(handle._jt_ref.id)
            if not self._options.get("get_if_exists"):
                raise _exists(name)

    def _remote_detached(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, namespace: str) -> ActorHandle:
        """In a supervisor of its own."""
        from jupyter_tasks import detached

        detached.check_place(name)
        functions.check_demand(self._options, launch.default_total(), name)
        args, kwargs = detached.by_value(args, kwargs, name)
        label = f"{self._cls.__module__}.{self._cls.__qualname__}"
        while True:
            found = None
            if session.is_initialized():
                found = _find(session.current_client(), name, namespace)
            found = found or _find_detached(name, namespace)
            if found is not None and self._options.get("get_if_exists"):
                return found
            if found is not None:
                raise _exists(name)
            try:
                with detached.Starting(name, namespace, kind="actor", label=label) as starting:
                    handle = self._make(starting.client, args, kwargs, name, namespace)
                    _as_detached(handle, starting.entry)  # before it can end
                    starting.keep([handle._jt_ref])
            except detached.NameTakenError as error:
                if error.kind == "actor" and self._options.get("get_if_exists"):
                    continue  # somebody was faster
                raise exceptions.ActorAlreadyExistsError(str(error)) from None
            return handle

    def _make(
        self, client: Client, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, namespace: str
    ) -> ActorHandle:
        label = name or self._cls.__name__
        options: dict[str, Any] = {
            **functions._wire_options(self._options, label),
            "max_retries": self._options.get("max_restarts") or 0,
            "actor": {
                "name": name,
                "namespace": namespace,
                "concurrency": self._concurrency,
                "max_task_retries": self._options.get("max_task_retries") or 0,
            },
        }
        if self._options.get("memory") is not None or self._options.get("lifetime") == "detached":
            options["announce"] = True
        functions.check_demand(self._options, client.settings["total"], label)
        if self._thread:
            ref = client.threads.make_actor(self._cls, self._retries(), self._record, args, kwargs, label, options)
        else:
            code = self._register(client)
            if code.captured:
                options["pins"] = list(code.captured)
            ref = client.make_actor(code.fn, args, kwargs, label, options, self._named)
        return ActorHandle(ref, label, to_json(self._record).decode())

    @property
    def _concurrency(self) -> int:
        wanted = self._options.get("max_concurrency")
        if wanted is not None:
            return int(wanted)
        return ASYNC_CONCURRENCY if self._record["asynchronous"] else 1

    def _retries(self) -> dict[str, Any]:
        """For which errors calls of which methods are run again."""
        found = {}
        for name, _ in _methods_of(self._cls):
            marked = _marked(self._cls, name)
            if marked.get("retry_exceptions"):
                found[name] = functions._retry_types(marked)
        return found

    def _register(self, client: Client) -> functions.Code:
        """Sends the class, once for each supervisor."""
        with self._lock:
            if client in self._sent:
                return self._sent[client]
            self._sent = {each: code for each, code in self._sent.items() if not each.closed}
            name = self._cls.__name__
            extras = {"sources": _sources(self._cls), "retry_exceptions": self._retries()}
            options = {"name": name, "class": self._record}
            code = self._sent[client] = functions.send_code(client, self._cls, extras, options, name=name, owner=self)
            return code

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return functions.by_name(self._signature, args, kwargs)

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options; see `remote` for their meaning."""
        return ActorClass(self._cls, {**self._options, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._cls.__name__
        raise TypeError(f"An actor class cannot be called directly. Use {name}.remote(...).")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        name = self._cls.__name__
        raise TypeError(
            f"{name} is an actor class, and nothing can be derived from it. Derive from the plain class, and make that "
            f"remote: Actor{name} = jt.remote({name})."
        )

    def __getattr__(self, name: str) -> Any:
        """Attributes of the class itself."""
        if name.startswith("_jt") or name == "_cls":
            raise AttributeError(name)
        return getattr(self._cls, name)

    def __dir__(self) -> list[str]:
        return sorted({"remote", "options", *dir(self._cls)})

    def __repr__(self) -> str:
        return f"<ActorClass {self._cls.__name__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._cls, self._options)


def _methods_of(cls: type) -> list[tuple[str, Any]]:
    """What can be called on an instance, by name."""
    found = []
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        objects_own = not any(name in vars(base) for base in cls.__mro__[:-1])
        if _is_method(value) and not objects_own and name not in _NOT_CALLED:
            found.append((name, getattr(cls, name)))
    return found


def _is_method(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, (staticmethod, classmethod, functools.partialmethod))


def _marked(cls: type, name: str) -> dict[str, Any]:
    marked: dict[str, Any] = getattr(getattr(cls, name), _MARK, {})
    return marked


def _record_of(cls: type) -> dict[str, Any]:
    """What others are told of the class: text, and nothing to unpickle."""
    methods = []
    asynchronous = False
    for name, function in _methods_of(cls):
        marked = _marked(cls, name)
        options = _method_wire(marked, f"{cls.__name__}.{name}", functions._makes_items(function))
        doc = (inspect.getdoc(function) or "")[:MOST_DOC]
        params, returns = _params_of(cls, name)
        methods.append({"name": name, "params": params, "returns": returns, "options": options, "doc": doc})
        plain = inspect.unwrap(function)
        asynchronous |= inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain)
    return {"name": cls.__name__, "asynchronous": asynchronous, "methods": methods}


def _params_of(cls: type, name: str) -> tuple[list[list[Any]] | None, str | None]:
    """Name, kind, default and annotation of each parameter but `self`; and the annotation of what it returns."""
    static = inspect.getattr_static(cls, name)
    try:
        signature = inspect.signature(getattr(cls, name))
    except (ValueError, TypeError):
        return None, None
    parameters = list(signature.parameters.values())
    if not isinstance(static, (staticmethod, classmethod)):
        if not parameters:
            return None, None  # a call of it fails, and says why
        if parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            parameters = parameters[1:]
    params = [[p.name, int(p.kind), _text_of(p.default), _text_of(p.annotation)] for p in parameters]
    return params, _text_of(signature.return_annotation)


def _text_of(value: Any) -> str | None:
    """A default or annotation, for people who ask for help."""
    if value is inspect.Parameter.empty:
        return None
    try:
        return inspect.formatannotation(value)[:MOST_DOC] if isinstance(value, type) else repr(value)[:MOST_DOC]
    except Exception:
        return "..."


class _Text:
    """Stands for a value that is only shown."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _signature_from(params: list[list[Any]], returns: str | None) -> inspect.Signature:
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(
            name,
            _KINDS[kind],
            default=empty if default is None else _Text(default),
            annotation=empty if annotation is None else _Text(annotation),
        )
        for name, kind, default, annotation in params
    ]
    return inspect.Signature(parameters, return_annotation=empty if returns is None else _Text(returns))


def _sources(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for _, function in _methods_of(cls):
        found |= functions._sources(function)
    init = vars(cls).get("__init__")
    if inspect.isfunction(init):
        found |= functions._sources(init)
    return found


def _checked_actor_options(options: dict[str, Any], name: str) -> dict[str, Any]:
    for option, value in options.items():
        if option not in _ACTOR_OPTIONS:
            from jupyter_tasks.ray_options import what_instead

            instead = what_instead(option, actor=True)
            why = f"Actors have no option {option!r}. {instead}" if instead else f"Unknown option {option!r}."
            raise TypeError(f"{why} Options are: {', '.join(sorted(_ACTOR_OPTIONS))}.")
        if value is None:
            continue
        if option in ("max_restarts", "max_task_retries"):
            _check_count(option, value, least=-1)
        elif option == "max_concurrency":
            _check_count(option, value, least=1)
        elif option in ("name", "namespace"):
            if not isinstance(value, str):
                raise TypeError(f"{option} must be a text, but is {value!r}.")
            if not value:
                raise ValueError(f"{option} must not be empty.")
        elif option == "get_if_exists" and not isinstance(value, bool):
            raise TypeError(f"get_if_exists must be True or False, but is {value!r}.")
    if options.get("lifetime") not in (None, "non_detached", "detached"):
        raise ValueError(f"lifetime must be None or 'detached', but is {options['lifetime']!r}.")
    if options.get("lifetime") == "detached":
        if not options.get("name"):
            raise ValueError(f"{name}: lifetime='detached' needs a name, by which it is found again: name='...'.")
        if options.get("executor") == "thread":
            raise ValueError(f"{name}: lifetime='detached' is for executor='process'; a thread ends with its process.")
    if options.get("get_if_exists") and not options.get("name"):
        raise ValueError("get_if_exists=True needs a name: it is the name that may exist.")
    plain = {"num_cpus", "num_gpus", "resources", "memory", "executor"}
    functions._checked({key: value for key, value in options.items() if key in plain})
    functions._check_executor(options, name)
    if options.get("executor") == "thread" and options.get("max_restarts"):
        raise ValueError(f"{name}: max_restarts is for executor='process'; a thread cannot end without its process.")
    return dict(options)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, but is {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, but is {value}.")


# -- methods --------------------------------------------------------------------------------------------------------


def method(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of a method of an actor class: `@jt.method(num_returns=2)`. The method itself stays what it is.

    Args:
        num_returns: as for `remote`: a number, "streaming" (the default of generators) or "dynamic".
        max_task_retries: how often a call is run again when the actor's process has ended and it is made anew; -1: as
            often as it takes. Default: the actor's.
        retry_exceptions: True, or a list of exception types for which a call is run again, at most max_task_retries
        times.
        generator_backpressure: as for `remote`.
        timeout: seconds a call may run; then it is asked to stop, as by a cancel, and ends with a TaskTimeoutError.

    Raises:
        TypeError: an unknown option.
        ValueError: a value that makes no sense.
    """
    checked = _checked_method_options(options)
    if "name" in checked:
        raise TypeError("A method has its own name; a name for one call is given by .options(name=...).")

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _MARK, checked)
        return function

    return mark


def _checked_method_options(options: dict[str, Any]) -> dict[str, Any]:
    options = {functions._RAYS_NAMES.get(name, name): value for name, value in options.items()}
    for name in options:
        if name not in _METHOD_OPTIONS:
            from jupyter_tasks.ray_options import what_instead

            instead = what_instead(name, actor=True)
            why = f"Methods have no option {name!r}. {instead}" if instead else f"Unknown option {name!r}."
            raise TypeError(f"{why} Options are: {', '.join(sorted(_METHOD_OPTIONS))}.")
    if options.get("max_task_retries") is not None:
        _check_count("max_task_retries", options["max_task_retries"], least=-1)
    functions._checked({key: value for key, value in options.items() if key != "max_task_retries"})
    return options


def _method_wire(options: Mapping[str, Any], name: str, makes_items: bool) -> dict[str, Any]:
    """As the supervisor and the worker want them."""
    wire: dict[str, Any] = {}
    for ours, theirs in (("max_task_retries", "max_retries"), ("timeout", "timeout"), ("name", "name")):
        if options.get(ours) is not None:
            wire[theirs] = options[ours]
    num_returns = options.get("num_returns")
    if num_returns is None and makes_items:
        num_returns = "streaming"
    backpressure = options.get("generator_backpressure")
    if backpressure is not None and num_returns != "streaming":
        raise ValueError(f"generator_backpressure is for generators with num_returns='streaming', and {name} is none.")
    if isinstance(num_returns, str):
        wire["generator"] = num_returns
        wire["backpressure"] = backpressure or 0
    elif num_returns is not None:
        wire["num_returns"] = num_returns
    return wire


class ActorMethod:
    """A method of an actor: call `.remote(...)`, get an ObjectRef at once. Got from a handle."""

    __slots__ = ("_handle", "_meta", "_options", "_retry")

    def __init__(
        self, handle: ActorHandle, meta: _MethodMeta, options: dict[str, Any] | None = None, retry: Any = None
    ) -> None:
        self._handle = handle
        self._meta = meta
        self._options = options  # of this call, as on the wire, beside those of the method
        self._retry = retry

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submits a call. Returns its ObjectRef at once (a list for num_returns=N, None for 0; of a generator an
        ObjectRefGenerator).

        Arguments are as for tasks: refs at the top level are awaited and replaced by their values. Calls of one caller
        begin in the order in which they were submitted, unless the actor runs several at a time.

        Raises:
            TypeError: the arguments do not fit the method.
            UnserializableError: an argument cannot be sent; names it.
            ObjectLostError: the session of the actor has ended.
        """
        meta, options = self._meta, self._options
        functions.check_call(meta.signature, meta.label, args, kwargs)
        ref = self._handle._jt_ref
        client = ref._client
        own = meta.options if options is None else {**meta.options, **options}
        label = own.get("name") or meta.label
        streams, num_returns = own.get("generator") == "streaming", own.get("num_returns", 1)
        if not client.is_buried:
            try:
                if streams:
                    return client.submit_call_stream(
                        *(ref.id, meta.head, args, kwargs, label, options, self._named, self._retry),
                        backpressure=bool(own.get("backpressure")),
                    )
                refs = client.submit_call(
                    *(ref.id, meta.head, args, kwargs, label, options, max(1, num_returns), self._named, self._retry)
                )
                return None if num_returns == 0 else refs
            except exceptions.ObjectLostError:
                if not client.is_buried:  # it has just ended
                    raise
        if streams:
            from jupyter_tasks.streams import ObjectRefGenerator

            return ObjectRefGenerator(client, client.dead_call(ref.id, label), backpressure=False)
        dead = [client.dead_call(ref.id, label) for _ in range(num_returns)]
        return dead if num_returns > 1 else dead[0] if dead else None

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return functions.by_name(self._meta.signature, args, kwargs)

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options, for the calls made by what is returned; see `method`, and `name`: what
        the screen shows."""
        checked = _checked_method_options(options)
        makes_items = self._meta.options.get("generator") is not None and checked.get("num_returns") is None
        wire = _method_wire(checked, self._meta.label, makes_items)
        if makes_items and "generator_backpressure" not in checked:
            wire.pop("backpressure", None)
        elif isinstance(checked.get("num_returns"), int):
            wire["generator"] = None
        retry = functions._retry_types(checked) if checked.get("retry_exceptions") is not None else self._retry
        return ActorMethod(self._handle, self._meta, {**(self._options or {}), **wire}, retry)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"Methods of an actor cannot be called directly. Use {self._meta.label}.remote(...).")

    def __repr__(self) -> str:
        return f"<ActorMethod {self._meta.label}>"

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._meta.doc

    @property
    def __name__(self) -> str:
        return self._meta.name

    @property
    def __signature__(self) -> inspect.Signature:
        if self._meta.signature is None:
            raise AttributeError("__signature__")
        return self._meta.signature


class _Terminate:
    """Ray's name for `terminate`."""

    def __init__(self, handle: ActorHandle) -> None:
        self._handle = handle

    def remote(self) -> ObjectRef:
        return self._handle._jt_terminate()


# -- handles --------------------------------------------------------------------------------------------------------


class ActorHandle:
    """Stands for an actor: `handle.method.remote(...)`. Got from `Class.remote(...)` and `jt.get_actor(name)`.

    It may be passed to tasks and other actors; the actor lives as long as there is a handle. `handle.terminate()` lets
    it do the calls that it has, and end: what it returns becomes final then (None, or why it ended). A method of that
    name goes before it. `jt.kill(handle)` ends it at once. Two handles of one actor are equal.
    """

    __slots__ = ("__weakref__", "_jt_label", "_jt_meta", "_jt_ref")

    def __init__(self, ref: ObjectRef, label: str, text: str) -> None:
        self._jt_ref = ref
        self._jt_label = label
        self._jt_meta = _meta_of(text, label)

    @property
    def _jt_entry(self) -> Any:
        """Of a detached actor: that of the registry. None inside of the actor itself."""
        id, entry = self._jt_ref._client.detached_actor or (0, None)
        return entry if id == self._jt_ref.id else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_jt"):
            raise AttributeError(name)
        meta = self._jt_meta.methods.get(name)
        if meta is not None:
            return ActorMethod(self, meta)
        if name == "terminate":
            return self._jt_terminate
        if name == "__ray_terminate__":
            return _Terminate(self)
        if name.startswith("_"):  # IPython, pickle and others ask for many
            raise AttributeError(name)
        known = ", ".join(sorted(each for each in self._jt_meta.methods if not each.startswith("_"))) or "none"
        raise AttributeError(
            f"{self._jt_meta.class_name} has no method {name!r}; it has: {known}. (Attributes of an actor are its own: "
            "write a method that returns them.)"
        )

    def _jt_terminate(self) -> ObjectRef:
        ref = self._jt_ref
        ref._client.say(frame(Kind.ACTOR_CLOSED, ref.id))
        return ref

    def __dir__(self) -> list[str]:
        return sorted({"terminate", *self._jt_meta.methods})

    def __hash__(self) -> int:
        return hash(self._jt_ref)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._jt_ref == self._jt_ref

    def __repr__(self) -> str:
        name = f" {self._jt_label!r}" if self._jt_label != self._jt_meta.class_name else ""
        return f"<ActorHandle {show_id(self._jt_ref.id)} {self._jt_meta.class_name}{name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._jt_entry is not None:  # whoever gets it finds the actor in the registry
            return _attached, (self._jt_label, self._jt_entry.namespace, self._jt_entry.mark)
        return ActorHandle, (self._jt_ref, self._jt_label, self._jt_meta.text)

    def __copy__(self) -> ActorHandle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ActorHandle:
        return self


def current_handle(host: Any) -> ActorHandle:
    """Of the actor that this code runs in. It keeps nothing alive, or an actor that holds itself would never end."""
    client = context.client_of_worker() if context.current_worker() is not None else session.current_client()
    ref = ObjectRef.unheld(client, host.id, host.label)
    return ActorHandle(ref, host.label, to_json(host.class_meta).decode())


def _exists(name: str) -> exceptions.ActorAlreadyExistsError:
    return exceptions.ActorAlreadyExistsError(
        f"There is an actor named {name!r} already. Use jt.get_actor({name!r}), get_if_exists=True, or end that one: "
        f"jt.kill(jt.get_actor({name!r}))."
    )


def _as_detached(handle: ActorHandle, entry: Any) -> ActorHandle:
    handle._jt_ref._client.is_for_actor(handle._jt_ref.id, entry)
    return handle


def _find_detached(name: str, namespace: str) -> ActorHandle | None:
    """The detached actor of this name, of any process of this user on this host."""
    from jupyter_tasks import detached

    for entry in detached.entries("actor"):
        if (entry.name, entry.namespace) == (name, namespace):
            return _attach(entry)
    return None


def _attach(entry: Any) -> ActorHandle | None:
    """None: it has just ended."""
    from jupyter_tasks import detached

    try:
        client = detached.client_of(entry)
        (ref,) = detached.bring(entry, actor=True)
        found = client.request("get_actor", name=entry.name, namespace=entry.namespace)
    except (exceptions.ObjectLostError, exceptions.ActorDiedError):
        return None
    if found is None:
        return None
    return _as_detached(ActorHandle(ref, entry.name, to_json(found["class"]).decode()), entry)


def _attached(name: str, namespace: str, mark: str) -> ActorHandle:
    """A handle of a detached actor that has arrived in this process."""
    from jupyter_tasks import detached

    for entry in detached.entries("actor"):
        if entry.mark == mark and (handle := _attach(entry)) is not None:
            return handle
    raise exceptions.ActorDiedError(f"The detached actor {name!r} has ended.", name=name)


# -- verbs ----------------------------------------------------------------------------------------------------------


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The living actor of this name.

    Raises:
        ValueError: there is none; says which there are.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"get_actor() takes the name of an actor, not {name!r}.")
    namespace = namespace or DEFAULT_NAMESPACE
    found = _find(session.current_client(), name, namespace) if session.is_initialized() else None
    found = found or _find_detached(name, namespace)
    if found is None:
        names = [actor["name"] for actor in list_actors() if actor["name"] and actor["namespace"] == namespace]
        known = ", ".join(sorted(names)) or "none"
        where = "" if namespace == DEFAULT_NAMESPACE else f" in the namespace {namespace!r}"
        raise ValueError(f"There is no actor named {name!r}{where}. Living actors with names: {known}.")
    return found


def _find(client: Client, name: str, namespace: str) -> ActorHandle | None:
    while (found := client.request("get_actor", name=name, namespace=namespace)) is not None:
        ref = client.hold(found["id"], actor=found["id"])
        if client.request("actor_made", id=ref.id):  # held before it ended, if it does
            return ActorHandle(ref, found["label"], to_json(found["class"]).decode())
    return None


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """Ends an actor at once, with all its processes. No `finally` and no atexit function of it runs.

    When it returns, they are gone, and no later call succeeds: calls that ran, waited or come later raise
    ActorDiedError. Tasks that the actor has submitted are killed, too. One that is over already: nothing happens.

    Args:
        no_restart: False: if its max_restarts allow it, the actor is made anew, by its constructor. Calls that ran or
            waited raise ActorUnavailableError, or run again if its max_task_retries allow that.

    Of an actor in a thread (executor="thread") the calls that run cannot be ended; they are asked to stop.

    Raises:
        ValueError: not a handle of an actor.
    """
    if not isinstance(actor, ActorHandle):
        hint = " To stop a task, use jt.cancel(ref), or jt.cancel(ref, force=True)." if _is_ref(actor) else ""
        raise ValueError(f"kill() takes the handle of an actor, not {type(actor).__name__}.{hint}")
    ref = actor._jt_ref
    if actor._jt_entry is not None and no_restart:
        from jupyter_tasks import detached

        detached.end(actor._jt_entry)
    elif not ref._client.closed:
        ref._client.request("kill", timeout=None, id=ref.id, no_restart=bool(no_restart), reason="")
        ref._client.drain_events()  # one in a thread of this process has heard of it, too


def _is_ref(value: object) -> bool:
    from jupyter_tasks.streams import ObjectRefGenerator

    return isinstance(value, (ObjectRef, ObjectRefGenerator))


def exit_actor() -> NoReturn:
    """In a method of an actor: ends the actor, by itself. It never returns.

    `finally` clauses and atexit functions run. What was called before ends first; this call, those that wait and later
    ones raise ActorDiedError. The actor is not made again, whatever its max_restarts. Where several calls run at a
    time, the others end first.

    Raises:
        TypeError: this is no actor.
    """
    here = session.here()
    if getattr(here, "host", None) is None and getattr(here, "actor", None) is None:
        raise TypeError("exit_actor() is for methods of actors. To end one from outside, use jt.kill(handle).")
    from jupyter_tasks.worker.actors import ActorCall, ActorExit, how

    leaves = ActorExit()
    if isinstance(here, ActorCall):
        here.leaves = True
    elif here.task_id:  # its constructor; or any code of it, in local mode
        (getattr(here, "host", None) or here.actor).leaving = how(leaves)
    raise leaves


def list_actors() -> list[dict[str, Any]]:
    """The actors of this session, also those that have ended lately.

    Returns:
        Dicts with "actor_id", "name" (None if it has none), "namespace", "class_name", "state" ("pending": its
        constructor has not ended, "alive", "restarting", "ending", "dead"), "pid" (None if it has no process),
        "restarts", and more.
    """
    from jupyter_tasks import detached

    records: list[dict[str, Any]] = []
    if session.is_initialized():
        records = session.current_client().request("actors")
    records += detached.records("actor")
    return [
        {
            "actor_id": record["task_id"],
            "name": record["registered_name"] or None,
            "state": record["life"],
            **{
                key: record[key]
                for key in ("namespace", "class_name", "pid", "restarts", "max_restarts", "waiting_calls")
            },
            "max_concurrency": record["concurrency"],
            "executor": record.get("executor", "process"),
            "lifetime": "detached" if record.get("detached") else None,
        }
        for record in records
        if "life" in record  # one that does not answer says nothing
    ]
