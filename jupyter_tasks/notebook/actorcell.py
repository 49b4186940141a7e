"""%%actor: a cell that defines one class makes an actor of it. Main thread of the notebook's kernel."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_tasks.actor import ActorClass, ActorHandle
from jupyter_tasks.notebook import arguments
from jupyter_tasks.notebook.names import check_name

__all__ = ["ActorMagics"]


@magics_class
class ActorMagics(Magics):  # type: ignore[misc]  # IPython is untyped
    """The magic."""

    @magic_arguments()
    @argument("name", nargs="?", help="bind the actor's handle to this name")
    @argument("--args", metavar="ARGS", help="what its constructor is called with, as --args '10, rate=0.1'")
    @argument("--max-concurrency", type=arguments.count, metavar="N", help="calls at a time (default 1; async: 1000)")
    @argument("--max-restarts", type=arguments.count_or_ever, metavar="N", help="made anew after a crash; -1: always")
    @argument("--max-task-retries", type=arguments.count_or_ever, metavar="N", help="... and calls are run again")
    @argument("--thread", action="store_true", help="in the kernel: it shares the notebook's objects")
    @argument("--register", metavar="NAME", help="others find it by jt.get_actor(NAME)")
    @argument("--namespace", metavar="NAME", help="... in this namespace")
    @argument(
        "--detach", action="store_true", help="it outlives the kernel; jt.get_actor(NAME) finds it in the next one"
    )
    @argument("--get-if-exists", action="store_true", help="take the living actor of that name, if there is one")
    @argument("--cpus", type=arguments.not_negative, metavar="N", help="slots that it holds (default 0)")
    @argument("--gpus", type=arguments.not_negative, metavar="N", help="GPUs that it holds (default 0)")
    @argument("--memory", type=arguments.size, metavar="SIZE", help="limit of its private memory, as 4GB")
    @argument("-h", "--help", action="store_true", help="show this text")
    @line_cell_magic
    def actor(self, line: str, cell: str | None = None) -> None:
        """Make an actor of the class that this cell defines: an object in a process of its own.

        `NAME.method.remote(...)` calls it, and jt.get(...) of that waits for the value. The cell runs in the notebook,
        so what else it defines is there, too. `jt.kill(NAME)` ends the actor; so does `del NAME`, when its calls are
        done.
        """
        args = arguments.parse("%%actor", ActorMagics.actor, line)
        if args is None:
            return
        if cell is None:
            raise UsageError("%%actor stands on top of a cell, with two %: %%actor NAME. See %actor --help.")
        if args.name is None:
            raise UsageError("%%actor needs a NAME for the handle: %%actor counter. See %actor --help.")
        namespace = self.shell.user_ns
        check_name(
            args.name, namespace, (), ActorHandle, of="actor", option="NAME", example="%%actor counter", magic="%%actor"
        )
        tree, file = self._parsed(cell, line)
        class_name = _the_class(tree)
        exec(compile(tree, file, "exec"), namespace)
        namespace[args.name] = self._make(namespace[class_name], args)

    def _parsed(self, cell: str, line: str) -> tuple[ast.Module, str]:
        """The cell's code, with the lines that it has in the notebook, under the name that the kernel gives it."""
        text = "\n" + self.shell.transform_cell(cell)
        file = self.shell.compile.cache(text, self.shell.execution_count, raw_code=f"%%actor {line}\n{cell}")
        return ast.parse(text, file), file

    def _make(self, made: Any, args: Any) -> ActorHandle:
        options = {
            "name": args.register or (args.name if args.detach else None),
            "lifetime": "detached" if args.detach else None,
            "namespace": args.namespace,
            "get_if_exists": args.get_if_exists or None,
            "max_concurrency": args.max_concurrency,
            "max_restarts": args.max_restarts,
            "max_task_retries": args.max_task_retries,
            "num_cpus": args.cpus,
            "num_gpus": args.gpus,
            "memory": args.memory,
            "executor": "thread" if args.thread else None,
        }
        options = {name: value for name, value in options.items() if value is not None}
        if isinstance(made, ActorClass):
            made = made.options(**options)
        elif inspect.isclass(made):
            made = ActorClass(made, options)
        else:
            raise UsageError(f"%%actor: the class was decorated, and is a {type(made).__name__} now.")
        positional, named = self._constructor_arguments(args.args)
        handle: ActorHandle = made.remote(*positional, **named)
        return handle

    def _constructor_arguments(self, text: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not text:
            return (), {}

        def take(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs

        text = arguments.unquoted(text)
        try:
            code = compile(f"take({text}\n)", "<--args>", "eval")
        except SyntaxError:
            raise UsageError(f"%%actor: --args {text!r} is not what a call may have between its parentheses.") from None
        try:
            found: tuple[tuple[Any, ...], dict[str, Any]] = eval(code, {**self.shell.user_ns, "take": take})
        except Exception as error:
            raise UsageError(f"%%actor: --args {text!r} raised {type(error).__name__}: {error}.") from error
        return found


def _the_class(tree: ast.Module) -> str:
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if not classes:
        raise UsageError("%%actor makes an actor of the class that its cell defines, and this cell defines none.")
    if len(classes) > 1:
        raise UsageError(
            f"%%actor makes an actor of the one class that its cell defines, here there are {', '.join(classes)}. Put "
            "the others into a cell before."
        )
    return classes[0]
