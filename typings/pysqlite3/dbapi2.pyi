from pysqlite3 import *
