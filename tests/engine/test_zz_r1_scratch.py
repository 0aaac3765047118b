import sys; sys.path.insert(0,'/work/main')
import pytest
from tests.engine.test_sparse import *
def k1(net): x=net.conv(net.input,64,1,1,0); x=net.conv(x,96,1,2,"same"); return net.linear(net.global_avg_pool(x),3)
def k13(net): x=net.conv(net.input,24,1,1,0); x=net.conv(x,40,(1,3),(2,2),"same"); return net.linear(net.global_avg_pool(x),3)
def k31(net): x=net.conv(net.input,24,1,1,0); x=net.conv(x,40,(3,1),(1,3),"same"); return net.linear(net.global_avg_pool(x),3)
def valid(net): x=net.conv(net.input,32,1,1,0); x=net.conv(x,48,5,1,0); x=net.conv(x,8,2,3,0);return net.linear(net.global_avg_pool(x),3)
def wide(net): x=net.conv(net.input,700,1,1,0); x=net.conv(x,300,3,2,"same"); return net.linear(net.global_avg_pool(x),3)
def deep(net): x=net.conv(net.input,9000,1,1,0); x=net.conv(x,300,3,2,"same"); return net.linear(net.global_avg_pool(x),3)
def deep2(net): x=net.conv(net.input,40,1,1,0); x=net.conv(x,30,3,1,"same"); return net.linear(net.global_avg_pool(x),3)
@pytest.mark.parametrize(("layers","shape","batch","density"),[
 (k1,(41,40,2),9,.05),(k1,(90,3,2),3,.1),(k13,(40,61,1),10,.1),(k31,(60,41,1),8,.1),(valid,(30,31,2),9,.05),(wide,(3,100,1),2,.01),(deep,(3,3,1),2,.01),(deep2,(2,1500,1),3,.1)])
def test_more(runtimes,layers,shape,batch,density):
    net=Net(shape); layers(net); rule=Sgd(momentum=.9,clip=.1)
    program=compile(net,loss="mse",ram="1GiB",flash="1GiB",batch=batch,sgd=rule,density=density,bucket=20)
    small=None; exp=None
    for name,rt in runtimes.items():
        if 'O0' in name: continue
        with loaded(rt): f=everything(NativeExecutor(program.image),program,rule)
        if exp is None: exp=f
        assert f==exp,name
