"""pysqlite3 offers the standard library's interface over a newer SQLite.

Its connections, cursors and rows are told as that library's, whose methods they share; its errors are told apart,
because at run time `except sqlite3.Error` does not catch them.
"""

from sqlite3 import PARSE_COLNAMES as PARSE_COLNAMES
from sqlite3 import PARSE_DECLTYPES as PARSE_DECLTYPES
from sqlite3 import SQLITE_BUSY as SQLITE_BUSY
from sqlite3 import SQLITE_CANTOPEN as SQLITE_CANTOPEN
from sqlite3 import SQLITE_CONSTRAINT as SQLITE_CONSTRAINT
from sqlite3 import SQLITE_CORRUPT as SQLITE_CORRUPT
from sqlite3 import SQLITE_DENY as SQLITE_DENY
from sqlite3 import SQLITE_ERROR as SQLITE_ERROR
from sqlite3 import SQLITE_FULL as SQLITE_FULL
from sqlite3 import SQLITE_INTERRUPT as SQLITE_INTERRUPT
from sqlite3 import SQLITE_IOERR as SQLITE_IOERR
from sqlite3 import SQLITE_LOCKED as SQLITE_LOCKED
from sqlite3 import SQLITE_MISUSE as SQLITE_MISUSE
from sqlite3 import SQLITE_NOTADB as SQLITE_NOTADB
from sqlite3 import SQLITE_OK as SQLITE_OK
from sqlite3 import SQLITE_PERM as SQLITE_PERM
from sqlite3 import SQLITE_READONLY as SQLITE_READONLY
from sqlite3 import SQLITE_SCHEMA as SQLITE_SCHEMA
from sqlite3 import SQLITE_TOOBIG as SQLITE_TOOBIG
from sqlite3 import Binary as Binary
from sqlite3 import Connection as Connection
from sqlite3 import Cursor as Cursor
from sqlite3 import Row as Row
from sqlite3 import complete_statement as complete_statement
from sqlite3 import connect as connect
from sqlite3 import register_adapter as register_adapter
from sqlite3 import register_converter as register_converter
from sqlite3 import sqlite_version as sqlite_version
from sqlite3 import sqlite_version_info as sqlite_version_info
from sqlite3 import threadsafety as threadsafety

class Warning(Exception): ...

class Error(Exception):
    sqlite_errorcode: int
    sqlite_errorname: str

class InterfaceError(Error): ...
class DatabaseError(Error): ...
class DataError(DatabaseError): ...
class IntegrityError(DatabaseError): ...
class InternalError(DatabaseError): ...
class NotSupportedError(DatabaseError): ...
class OperationalError(DatabaseError): ...
class ProgrammingError(DatabaseError): ...
